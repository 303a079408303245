import type { Parsed } from './quantities.js';

const PLACEHOLDERS = ['type', 'key', 'schema_version'];

/** A schema name that needs no thought about quoting: lower case, at most 41 bytes, not one of PostgreSQL's own. */
export function checkSchemaName(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && /^[a-z_][a-z0-9_]{0,40}$/.test(raw) && !raw.startsWith('pg_')) return { value: raw };
  return {
    problem: 'is not a usable schema name',
    mend: 'use a-z, 0-9 and _, beginning with a letter, at most 41 of them, not beginning with pg_',
  };
}

/** A relay name: it becomes a part of the slot's and the lock queue's name. */
export function checkRelayName(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && /^[a-z][a-z0-9_-]{0,39}$/.test(raw)) return { value: raw };
  return {
    problem: 'is not a usable relay name',
    mend: 'use a-z, 0-9, _ and -, beginning with a letter, at most 40 of them',
  };
}

/** An exchange name: 1 to 255 bytes. */
export function checkExchangeName(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && raw !== '' && Buffer.byteLength(raw) <= 255) return { value: raw };
  return { problem: 'is not an exchange name', mend: 'give a name of 1 to 255 bytes' };
}

/** An exchange type of AMQP, or one of a plugin (`x-...`). */
export function checkExchangeType(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && /^(topic|direct|fanout|headers|x-[a-z0-9-]{1,60})$/.test(raw)) return { value: raw };
  return { problem: 'is not an exchange type', mend: 'write topic, direct, fanout, headers, or x-... of a plugin' };
}

/** A routing key with the placeholders {type}, {key} and {schema_version}. */
export function checkRoutingKey(raw: unknown): Parsed<string> {
  const mend = `the placeholders are ${PLACEHOLDERS.map((name) => `{${name}}`).join(', ')}`;
  if (typeof raw !== 'string') return { problem: 'is not a text', mend };
  if (Buffer.byteLength(raw) > 255) return { problem: 'is longer than 255 bytes', mend: 'shorten it' };
  for (const [whole, name = ''] of raw.matchAll(/\{([^{}]*)\}/g)) {
    if (!PLACEHOLDERS.includes(name)) return { problem: `has the unknown placeholder ${whole}`, mend };
  }
  if (/[{}]/.test(raw.replaceAll(/\{[^{}]*\}/g, ''))) return { problem: 'has a brace that is not closed', mend };
  return { value: raw };
}
