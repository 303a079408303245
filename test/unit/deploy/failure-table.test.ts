import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

const FOLDER = new URL('../../', import.meta.url);
const README = readFileSync(new URL('README.md', FOLDER), 'utf8');
const FILES = readdirSync(FOLDER, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));
/** The outbox side of the catalogue of failures: the numbers that must have a line. */
const NUMBERS: readonly (readonly [number, number])[] = [
  [1, 10],
  [20, 92],
  [112, 123],
  [130, 133],
];

/** Numbers that a text names, ranges such as F51-F54 included. */
function numbersIn(text: string): Set<number> {
  const found = new Set<number>();
  for (const [, from = '', to = from] of text.matchAll(/\bF(\d+)(?:-F(\d+))?/g)) {
    for (let n = Number(from); n <= Number(to); n += 1) found.add(n);
  }
  return found;
}

test('every failure of the outbox has a line in the table of test/README.md, with a test or with the reason for none', () => {
  const told = numbersIn(README);
  const missing = NUMBERS.flatMap(([from, to]) =>
    Array.from({ length: to - from + 1 }, (_, n) => from + n).filter((n) => !told.has(n)),
  );
  expect(missing).toEqual([]);
});

test('the tests that the table names are there, and name the numbers of their line', () => {
  const wrong: string[] = [];
  for (const line of README.split('\n')) {
    const [, failure = '', tests = ''] = /^\| (.*) \| (.*) \|$/.exec(line) ?? [];
    if (failure === '' || failure === 'Failure') continue;
    const numbers = [...numbersIn(failure)].filter((n) => NUMBERS.some(([from, to]) => n >= from && n <= to));
    let named = new Set<number>();
    for (const [name] of tests.matchAll(/[a-z0-9]+\/[a-z0-9*/-]+/g)) {
      // A file, a folder, or a beginning with a star.
      const there = FILES.filter((file) =>
        name.endsWith('*')
          ? file.startsWith(name.slice(0, -1))
          : [`${name}.test.ts`, `${name}.ts`].includes(file) || file.startsWith(`${name}/`),
      );
      if (there.length === 0) wrong.push(`${name} is not there`);
      for (const file of there) named = new Set([...named, ...numbersIn(readFileSync(new URL(file, FOLDER), 'utf8'))]);
    }
    for (const n of numbers) if (!named.has(n)) wrong.push(`F${n}: none of ${tests} names it`);
  }
  expect(wrong).toEqual([]);
});
