/** One statement of an SQL file, with the line (from 1) on which it starts. */
export interface SqlStatement {
  readonly text: string;
  readonly line: number;
}

const OPAQUE = /--[^\n]*|\/\*[\s\S]*?\*\/|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$([A-Za-z_]\w*)?\$[\s\S]*?\$\1\$|;/g;

/**
 * Cuts an SQL file at its semicolons; those in strings, quoted names, dollar quotes and comments do not count. For our
 * own files: no nested comments, no E'' strings with escaped quotes, no semicolons in `begin atomic` bodies.
 */
export function splitStatements(sql: string): SqlStatement[] {
  const statements: SqlStatement[] = [];
  let start = 0;
  const take = (end: number): void => {
    const lead = /^(?:\s|--[^\n]*(?:\n|$))*/.exec(sql.slice(start, end))?.[0].length ?? 0;
    const text = sql.slice(start + lead, end).trim();
    if (text !== '') statements.push({ text, line: lineAt(sql, start + lead) });
    start = end + 1;
  };
  for (const match of sql.matchAll(OPAQUE)) if (match[0] === ';') take(match.index);
  take(sql.length);
  return statements;
}

/** The line (from 1) that holds the character at `offset` (from 0). */
export function lineAt(text: string, offset: number): number {
  return text.slice(0, offset).split('\n').length;
}
