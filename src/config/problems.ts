import { WaybillError } from '../core/errors.js';

/** One thing that is wrong with the configuration, told without ever repeating a secret. */
export interface ConfigProblem {
  /** The key path, the environment variable or the file that it is about. */
  at: string;
  problem: string;
  mend: string;
}

/** The configuration cannot be used; holds every problem that was found, not only the first. */
export class ConfigInvalid extends WaybillError {
  readonly problems: readonly ConfigProblem[];

  constructor(problems: readonly ConfigProblem[]) {
    const count = problems.length === 1 ? 'one problem' : `${problems.length} problems`;
    super('WAYBILL_CONFIG_INVALID', `The configuration has ${count}:\n${problems.map(line).join('\n')}`, {
      hint: 'every key, its unit and its default: `waybill config reference`',
    });
    this.problems = problems;
  }
}

function line({ at, problem, mend }: ConfigProblem): string {
  return `  ${at} ${problem}; ${mend}`;
}

/** The candidate that differs least from `wrong`, if it is near enough to have been meant. */
export function nearestName(wrong: string, candidates: Iterable<string>): string | undefined {
  const plain = (name: string) => name.toLowerCase().replaceAll(/[^a-z0-9.]/g, '');
  let nearest: string | undefined;
  let least = Math.max(2, Math.floor(wrong.length * 0.34)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(plain(wrong), plain(candidate));
    if (distance < least) {
      least = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

function editDistance(a: string, b: string): number {
  let above = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const substituted = (above[column - 1] ?? 0) + (a[row - 1] === b[column - 1] ? 0 : 1);
      current.push(Math.min((above[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1, substituted));
    }
    above = current;
  }
  return above[b.length] ?? 0;
}
