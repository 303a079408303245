import type { Config } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import { lockQueueName } from '../core/identity.js';
import { toDatabaseError } from '../postgres/errors.js';
import { deleteRelay, dropSlot, forgetServers } from '../postgres/forget-relay.js';
import { readDatabaseName, readSystemIdentifier } from '../postgres/inspect-server.js';
import { readInstallation, readRelays, readSlot, type RelayEntry, type SlotEntry } from '../postgres/inspect.js';
import { checkSchema } from '../postgres/migrations.js';
import { inspectLock } from '../rabbitmq/inspect.js';
import { brokerEndpoints } from './endpoints.js';
import { withDatabase, type SqlClient } from './session.js';

type Database = Config['database'];

/** Where a relay would hold its locks. Without a broker only the slot tells whether it runs. */
export interface RelayServers {
  database: Database;
  broker: Config['broker'] | undefined;
}

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
  /** Why the lock queue could not be looked at, if so. */
  lockUnseen: string | undefined;
}

/** What an adoption has done. */
export interface RelayAdoption {
  systemIdentifier: string;
  /** Why the lock queue could not be looked at, if so. */
  lockUnseen: string | undefined;
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
 * Refused while the relay runs: while its slot is read, or its lock queue is held.
 */
export function adoptRelay(
  servers: RelayServers,
  name: string,
  { expect, reason = null }: { expect?: string; reason?: string | null },
): Promise<RelayAdoption> {
  return work(servers.database, 'adopting the relay', async (client) => {
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
    const lockUnseen = await assertStopped(client, servers, await find(client, servers.database.schema, name));
    await forgetServers(client, servers.database.schema, name, reason);
    return { systemIdentifier: here ?? '', lockUnseen };
  });
}

/**
 * Drops the relay's slot, if it is of this database and of pgoutput, then its record. Rows in the outbox stay, and the
 * relay that is started next publishes them. Refused while the relay runs, as in adoptRelay; and, but with `force`, when
 * applications delete rows themselves, which only the slot can bring.
 */
export function dropRelay(
  servers: RelayServers,
  name: string,
  { force = false, reason = null }: { force?: boolean; reason?: string | null },
): Promise<RelayDrop> {
  return work(servers.database, 'dropping the relay', async (client) => {
    const { schema } = servers.database;
    const lockUnseen = await assertStopped(client, servers, await find(client, schema, name));
    // Why anew: it may have noted such a row just before it stopped.
    const relay = await find(client, schema, name);
    if (!force) assertNothingOnlyInSlot(relay, schema);
    const { slot } = relay;
    const here = await readDatabaseName(client);
    const isOurs = slot !== null && slot.database === here && slot.plugin === 'pgoutput';
    if (isOurs) await dropSlot(client, slot.name);
    await deleteRelay(client, schema, name, reason);
    const dropped = slot === null ? 'absent' : isOurs ? 'dropped' : 'left';
    return { name, slotName: relay.record.slot, slot: dropped, lockUnseen };
  });
}

function assertNothingOnlyInSlot({ record, slot }: ListedRelay, schema: string): void {
  if (!record.insertThenDeleteSeen) return;
  throw new WaybillError(
    'WAYBILL_ROWS_ONLY_IN_LOG',
    `Applications of relay ${record.name} delete rows themselves; those not published yet are in slot ${slot?.name ?? record.slot ?? '?'} alone and would be lost. Nothing was changed.`,
    {
      hint: `Stop the applications, let \`waybill run\` publish what is left, stop it, then: waybill relay drop ${record.name} --force. If no application does it any more: update ${schema}.relay set insert_then_delete_seen = false;`,
    },
  );
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

/**
 * Throws when the relay runs. Its slot tells while it streams; during a table pass, and with `source: table`, only the
 * lock queue does. A broker that cannot be asked stops nobody, since it may be gone for good: the reason is given back.
 */
async function assertStopped(
  client: SqlClient,
  { database, broker }: RelayServers,
  { record, slot }: ListedRelay,
): Promise<string | undefined> {
  const hint = `Stop it first; it was started as ${record.holder ?? 'an unknown process'}.`;
  if (slot?.active === true) {
    throw new WaybillError(
      'WAYBILL_SLOT_BUSY',
      `Relay ${record.name} is running: slot ${slot.name} is read by server process ${slot.activePid ?? '?'}.`,
      { hint },
    );
  }
  const installation = await readInstallation(client, database.schema);
  if (installation === undefined) return undefined;
  if (!broker) return 'no broker is configured';
  const queue = lockQueueName(installation, record.name);
  let state;
  try {
    state = await inspectLock(brokerEndpoints(broker), queue);
  } catch (error) {
    if (error instanceof WaybillError) return error.message;
    throw error;
  }
  if (state !== 'held') return state === 'free' ? undefined : 'RabbitMQ does not say';
  throw new WaybillError('WAYBILL_LOCK_TAKEN', `Relay ${record.name} is running: its lock queue ${queue} is held.`, {
    hint,
  });
}
