import { quoteIdentifier } from '../core/identity.js';
import type { SchemaOption } from './publish.js';
import type { Queryable } from './queryable.js';

/**
 * True once for a scope and key among all committed transactions: do the thing in the same transaction if it is. Waits for
 * a transaction that has asked before and not ended. `result` is kept for `firstResult`.
 */
export async function firstTime(
  client: Queryable,
  scope: string,
  key: string,
  { schema = 'waybill', result = null }: SchemaOption & { result?: string | null } = {},
): Promise<boolean> {
  const { rows } = await client.query(
    `select ${quoteIdentifier(schema)}.first_time($1, $2, $3)::pg_catalog.text as answer`,
    [scope, key, result],
  );
  return rows[0]?.['answer'] === 'true';
}

/** The result that the first time was told; null without one. */
export async function firstResult(
  client: Queryable,
  scope: string,
  key: string,
  { schema = 'waybill' }: SchemaOption = {},
): Promise<string | null> {
  const { rows } = await client.query(`select ${quoteIdentifier(schema)}.first_result($1, $2) as answer`, [scope, key]);
  const answer = rows[0]?.['answer'];
  return typeof answer === 'string' ? answer : null;
}

/** True if this version of an entity is newer than all that were asked about: apply the event only then. */
export async function newer(
  client: Queryable,
  scope: string,
  key: string,
  version: bigint | number,
  { schema = 'waybill' }: SchemaOption = {},
): Promise<boolean> {
  const { rows } = await client.query(
    `select ${quoteIdentifier(schema)}.newer($1, $2, $3)::pg_catalog.text as answer`,
    [scope, key, String(version)],
  );
  return rows[0]?.['answer'] === 'true';
}
