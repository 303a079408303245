import { readFileSync } from 'node:fs';
import { quoteIdentifier, quoteLiteral } from '../core/identity.js';
import { DEFAULT_SCHEMA, quoteSchema } from './schema-name.js';

/** Names for sql/roles.sql; what is left out has the default that the file gives it. */
export interface RoleNames {
  readonly schema?: string;
  readonly owner?: string;
  readonly app?: string;
  readonly relay?: string;
  readonly observer?: string;
  /** One more role, for people who look at rows that could not be published, and retry or discard them; none by default. */
  readonly operator?: string;
  /** One more role, for applications that insert and delete a row in one transaction; none by default. */
  readonly appDelete?: string;
}

/**
 * sql/roles.sql as plain SQL, for a driver: one transaction, may be repeated. Does what psql would do with the file: its
 * `\if :{?name}`, `\else`, `\endif` and `\set`, and its variables as identifiers and literals.
 */
export function rolesSql(names: RoleNames = {}): string {
  quoteSchema(names.schema ?? DEFAULT_SCHEMA);
  const { appDelete, ...others } = names;
  const variables = new Map<string, string>();
  for (const [name, value] of Object.entries({ ...others, app_delete: appDelete })) {
    if (value !== undefined) variables.set(name, value);
  }
  const file = readFileSync(new URL('../../sql/roles.sql', import.meta.url), 'utf8');
  return substitute(runMetaCommands(file.split('\n'), variables), variables);
}

function runMetaCommands(lines: readonly string[], variables: Map<string, string>): string {
  const kept: string[] = [];
  let active = true;
  for (const line of lines) {
    const [command, ...operands] = line.startsWith('\\') ? line.slice(1).split(' ') : [''];
    if (command === '') {
      if (active) kept.push(line);
    } else if (command === 'if') {
      active = variables.has(/^:\{\?(\w+)\}$/.exec(operands[0] ?? '')?.[1] ?? '');
    } else if (command === 'else') {
      active = !active;
    } else if (command === 'endif') {
      active = true;
    } else if (command === 'set') {
      if (active) variables.set(operands[0] ?? '', (operands[1] ?? '').replace(/^'(.*)'$/, '$1'));
    } else {
      throw new Error(`roles.sql has a command that only psql knows: ${line}`);
    }
  }
  return kept.join('\n');
}

function substitute(sql: string, variables: ReadonlyMap<string, string>): string {
  return sql.replace(/:(["'])(\w+)\1/g, (_, quote: string, name: string) => {
    const value = variables.get(name);
    if (value === undefined) throw new Error(`roles.sql uses a variable without a value: ${name}`);
    return quote === '"' ? quoteIdentifier(value) : quoteLiteral(value);
  });
}
