import type { Config } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import { toDatabaseError } from '../postgres/errors.js';
import { deleteRelay, dropSlot, forgetServers } from '../postgres/forget-relay.js';
import { readDatabaseName, readSystemIdentifier } from '../postgres/inspect-server.js';
import { readRelays, readSlot, type RelayEntry, type SlotEntry } from '../postgres/inspect.js';
import { checkSchema } from '../postgres/migrations.js';
import { withDatabase, type SqlClient } from './session.js';

type Database = Config['database'];

/** A recorded relay with its slot, if that exists. */
export interface ListedRelay {
  record: RelayEntry;
  slot: SlotEntry | null;
}

/** What a drop would do or has done. `slot`: dropped, not there, or left because it is not ours. */
export interface RelayDrop {
  name: string;
  slotName: string | null;
  slot: 'dropped' | 'absent' | 'left';
}

const LIMITS = { lockTimeoutMs: 5_000, statementTimeoutMs: 30_000, workTimeoutMs: 60_000 };

/** Every relay that is recorded for the schema. */
export function listRelays(database: Database): Promise<ListedRelay[]> {
  return work(database, 'listing the relays', async (client) => {
    const listed: ListedRelay[] = [];
    for (const record of await readRelays(client, database.schema)) listed.push(await withSlot(client, record));
    return listed;
  });
}

/**
 * Forgets which PostgreSQL and RabbitMQ clusters the relay worked with, and its position: the next start records the new
 * ones and reads the table before the stream. With `expect`, only if the server connected to has that identifier.
 * Refused while the relay runs. Gives the identifier of the server.
 */
export function adoptRelay(database: Database, name: string, expect: string | undefined): Promise<string> {
  return work(database, 'adopting the relay', async (client) => {
    const here = await readSystemIdentifier(client);
    if (expect !== undefined && expect !== here) {
      throw new WaybillError(
        'WAYBILL_IDENTITY_CHANGED',
        `This server is ${here ?? 'unknown'}, not ${expect}; nothing was changed.`,
        {
          hint: 'Check database.url: is it the server that you mean?',
        },
      );
    }
    assertStopped(await find(client, database.schema, name));
    await forgetServers(client, database.schema, name);
    return here ?? '';
  });
}

/**
 * Drops the relay's slot, if it is of this database and of pgoutput, then its record. Rows in the outbox stay, and the
 * relay that is started next publishes them. Refused while its slot is in use.
 */
export function dropRelay(database: Database, name: string): Promise<RelayDrop> {
  return work(database, 'dropping the relay', async (client) => {
    const relay = await find(client, database.schema, name);
    assertStopped(relay);
    const { slot } = relay;
    const here = await readDatabaseName(client);
    const isOurs = slot !== null && slot.database === here && slot.plugin === 'pgoutput';
    if (isOurs) await dropSlot(client, slot.name);
    await deleteRelay(client, database.schema, name);
    return { name, slotName: relay.record.slot, slot: slot === null ? 'absent' : isOurs ? 'dropped' : 'left' };
  });
}

async function work<T>(database: Database, doing: string, act: (client: SqlClient) => Promise<T>): Promise<T> {
  return withDatabase(database, LIMITS, async (client) => {
    try {
      await checkSchema(client, { schema: database.schema });
      return await act(client);
    } catch (error) {
      throw toDatabaseError(error, doing);
    }
  });
}

async function find(client: SqlClient, schema: string, name: string): Promise<ListedRelay> {
  const relays = await readRelays(client, schema);
  const record = relays.find((relay) => relay.name === name);
  if (record) return withSlot(client, record);
  const known = relays.map((relay) => relay.name).join(', ') || 'none';
  throw new WaybillError('WAYBILL_RELAY_UNKNOWN', `Schema ${schema} has no relay "${name}".`, {
    hint: `The relays recorded here: ${known}.`,
  });
}

async function withSlot(client: SqlClient, record: RelayEntry): Promise<ListedRelay> {
  const slot = record.slot === null ? undefined : await readSlot(client, record.slot);
  return { record, slot: slot ?? null };
}

function assertStopped({ record, slot }: ListedRelay): void {
  if (slot?.active !== true) return;
  throw new WaybillError(
    'WAYBILL_SLOT_BUSY',
    `Relay ${record.name} is running: slot ${slot.name} is read by server process ${slot.activePid ?? '?'}.`,
    { hint: `Stop it first; it was started as ${record.holder ?? 'an unknown process'}.` },
  );
}
