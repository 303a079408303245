import { ERROR_CODES } from '../src/core/errors.js';

const BEGIN = '<!-- error codes: begin, made by `npm run generate` -->';
const END = '<!-- error codes: end -->';

/** The README with its table of error codes made anew from src/core/errors.ts. */
export function withErrorTable(readme: string): string {
  const begin = readme.indexOf(BEGIN);
  const end = readme.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`README.md needs the lines ${BEGIN} and ${END}`);
  const rows = Object.entries(ERROR_CODES).map(([code, meaning]) => `| \`${code}\` | ${meaning} |`);
  const table = ['| Code | Meaning |', '|---|---|', ...rows].join('\n');
  return `${readme.slice(0, begin)}${BEGIN}\n${table}\n${readme.slice(end)}`;
}
