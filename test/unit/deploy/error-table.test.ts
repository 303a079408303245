import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { withErrorTable } from '../../../deploy/error-table.js';

const readme = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8');

it("the README's error codes are those of src/core/errors.ts; refresh them with `npm run generate`", () => {
  expect(withErrorTable(readme)).toBe(readme);
});

it('a README without the marks is refused', () => {
  expect(() => withErrorTable('# Waybill\n')).toThrow('README.md needs the lines');
});
