import { createHash } from 'node:crypto';

const MAX_IDENTIFIER_BYTES = 63;

/**
 * The slot of a relay: `waybill_<database>_<schema>_<relay>`. Slot names are server-wide and hold only [a-z0-9_]; what
 * does not fit, had to be changed or could be read two ways gets a hash so that two relays never share a name.
 */
export function slotName(database: string, schema: string, relay: string): string {
  const exact = `waybill_${database}_${schema}_${relay}`;
  const mapped = exact.toLowerCase().replace(/[^a-z0-9_]/g, '_');
  // Why: with an underscore in schema or relay, `a_b` + `c` and `a` + `b_c` would read the same.
  const ambiguous = schema.includes('_') || relay.includes('_');
  if (mapped === exact && !ambiguous && mapped.length <= MAX_IDENTIFIER_BYTES) return mapped;
  const hash = createHash('sha256')
    .update(JSON.stringify([database, schema, relay]))
    .digest('hex')
    .slice(0, 10);
  return `${mapped.slice(0, MAX_IDENTIFIER_BYTES - 1 - hash.length)}_${hash}`;
}

export function publicationName(schema: string): string {
  return `${schema}_outbox`;
}

/** The exclusive queue whose holder may publish (O8): one for each copy of the database and relay name. */
export function lockQueueName(installation: string, relay: string): string {
  return `waybill.lock.${installation}.${relay}`;
}

/** An SQL identifier, quoted. */
export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** An SQL string literal, quoted; for replication commands, which take no parameters. */
export function quoteLiteral(text: string): string {
  const escaped = text.replaceAll("'", "''");
  return escaped.includes('\\') ? ` E'${escaped.replaceAll('\\', '\\\\')}'` : `'${escaped}'`;
}
