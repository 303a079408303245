import type { Client } from 'pg';
import { quoteSchema } from './schema-name.js';

/**
 * Forgets which servers the relay worked with, and its position, so that its next start records them anew and reads the
 * table before the stream. The epoch grows: whoever still held it settles nothing more. Written to the action_log.
 */
export async function forgetServers(
  client: Client,
  schema: string,
  name: string,
  reason: string | null,
): Promise<void> {
  await client.query('begin');
  // Why: this decides where the relay resumes, so it must survive a crash of the server.
  await client.query('set local synchronous_commit = on');
  await client.query(`select ${quoteSchema(schema)}.adopt_relay($1, $2)`, [name, reason]);
  await client.query('commit');
}

/** Drops a slot; call only for one of this database and of pgoutput that nobody reads. */
export async function dropSlot(client: Client, slot: string): Promise<void> {
  await client.query('select pg_drop_replication_slot($1)', [slot]);
}

/** Deletes the record of a relay; rows of the outbox stay. Written to the action_log. */
export async function deleteRelay(client: Client, schema: string, name: string, reason: string | null): Promise<void> {
  await client.query(`select ${quoteSchema(schema)}.drop_relay($1, $2)`, [name, reason]);
}
