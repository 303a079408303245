import type { Config } from '../config/load.js';
import type { OldTransactions, ServerInspection } from '../postgres/inspect-server.js';
import type { SlotEntry } from '../postgres/inspect.js';
import { ageText, fail, ok, warn, type Finding } from './doctor-findings.js';

/** What the checks of the server are made from. */
export interface ServerEvidence {
  server: ServerInspection;
  transactions: OldTransactions;
  slotName: string;
  slot: SlotEntry | undefined;
  /** Applications delete rows themselves: those not published yet are in the slot alone. */
  insertThenDeleteSeen: boolean;
  /** Ours minus the database's, half the round trip taken out. */
  clockDifferenceMs: number;
  ages: OldAges;
}

/** From which age on something is old, in ms. */
export interface OldAges {
  transactionMs: number;
  preparedMs: number;
}

export const OLD: OldAges = { transactionMs: 3_600_000, preparedMs: 60_000 };

const OLDEST_VERSION = 14;
const NEWEST_TESTED_VERSION = 18;
const CLOCK_LIMIT_MS = 5_000;
const MEGABYTE = 2 ** 20;
/** Longer than most outages of a broker, in which nobody reads the slot. */
const SHORT_IDLE_TIMEOUT_MS = 24 * 3_600_000;
const OWN_DELETES_LOST = ', and rows that applications deleted themselves and that were not published yet are lost';

/** Every check of the PostgreSQL server; pure. */
export function checkServer(evidence: ServerEvidence, config: Config): Finding[] {
  const always = [version, primary, oldSessions, clock];
  // Of one that only consumes, the WAL is somebody else's business.
  if (!config.relay.enabled) return always.flatMap((check) => check(evidence));
  const checks = [version, primary, walLevel, slotBudget, senderBudget, keepSize, idleTimeout, senderTimeout, role];
  const more = [outputPlugins, slot, failover, prepared, oldSessions, standby, clock];
  return [...checks, ...more].flatMap((check) => check(evidence, config));
}

function version({ server }: ServerEvidence): Finding {
  const major = Math.floor(server.version / 10_000);
  if (major < OLDEST_VERSION) {
    return fail('postgres-version', `PostgreSQL ${server.versionText} is too old`, 'upgrade to PostgreSQL 14 or later');
  }
  if (major > NEWEST_TESTED_VERSION) {
    const mend = `Waybill was tested up to ${NEWEST_TESTED_VERSION}; try it before you rely on it`;
    return warn('postgres-version', `PostgreSQL ${server.versionText} is newer than Waybill`, mend);
  }
  return ok('postgres-version', `PostgreSQL ${server.versionText}`);
}

function primary({ server }: ServerEvidence): Finding {
  if (!server.inRecovery) return ok('primary', 'the server is a primary');
  return fail('primary', 'the server is a standby, which takes no writes', 'point database.url at the primary');
}

function walLevel({ server }: ServerEvidence, { relay }: Config): Finding {
  if (relay.source === 'table')
    return ok('wal-level', `wal_level is ${server.walLevel}; relay.source: table needs none`);
  if (server.walLevel === 'logical') return ok('wal-level', 'wal_level is logical');
  return fail(
    'wal-level',
    `wal_level is ${server.walLevel}; reading the WAL needs logical`,
    'alter system set wal_level = logical; then restart PostgreSQL (or set relay.source: table). Once a slot exists, the server does not start with less',
  );
}

function slotBudget({ server, slot }: ServerEvidence, { relay }: Config): Finding[] {
  if (relay.source === 'table') return [];
  return [
    budget('replication-slots', 'replication slots', 'max_replication_slots', {
      used: server.usedReplicationSlots,
      max: server.maxReplicationSlots,
      oursIsOne: slot !== undefined,
    }),
  ];
}

function senderBudget({ server, slot }: ServerEvidence, { relay }: Config): Finding[] {
  if (relay.source === 'table') return [];
  return [
    budget('wal-senders', 'WAL senders', 'max_wal_senders', {
      used: server.usedWalSenders,
      max: server.maxWalSenders,
      oursIsOne: slot?.active === true,
    }),
  ];
}

function budget(
  id: string,
  what: string,
  setting: string,
  n: { used: number; max: number; oursIsOne: boolean },
): Finding {
  const said = `${n.used} of ${n.max} ${what} in use`;
  const mend = `raise ${setting} (needs a restart), or free one that nobody needs`;
  if (n.used >= n.max && !n.oursIsOne) return fail(id, `${said}; none is left for this relay`, mend);
  return n.used >= n.max ? warn(id, `${said}; none is left for a rebuild or a standby`, mend) : ok(id, said);
}

function keepSize({ server, insertThenDeleteSeen }: ServerEvidence, { relay }: Config): Finding[] {
  if (relay.source === 'table') return [];
  const id = 'slot-keep-size';
  if (server.maxSlotWalKeepMb < 0) {
    return [
      fail(
        id,
        'max_slot_wal_keep_size is unlimited: a slot that nobody reads fills the disk of the database',
        `alter system set max_slot_wal_keep_size = '${suggestedKeepSize(relay.maxKeptWalBytes)}'; select pg_reload_conf(); a slot lost by it costs ${insertThenDeleteSeen ? 'the rows that applications deleted themselves and that were not published yet: choose it for the longest outage of the broker' : 'time, not messages'}`,
      ),
    ];
  }
  const limit = server.maxSlotWalKeepMb * MEGABYTE;
  if (limit < relay.maxKeptWalBytes) {
    return [
      warn(
        id,
        `max_slot_wal_keep_size is ${server.maxSlotWalKeepMb} MB, less than relay.maxKeptWal (${relay.maxKeptWalBytes / MEGABYTE} MB)`,
        'raise the one or lower the other, so that the relay gives up its position before the server takes it',
      ),
    ];
  }
  return [ok(id, `max_slot_wal_keep_size is ${server.maxSlotWalKeepMb} MB`)];
}

function suggestedKeepSize(maxKeptWalBytes: number): string {
  return `${Math.ceil((maxKeptWalBytes * 2) / 2 ** 30)}GB`;
}

/** F27: it ends a slot whose relay is stopped, or waits for the broker; PostgreSQL 18 and later. */
function idleTimeout({ server, insertThenDeleteSeen }: ServerEvidence, { relay }: Config): Finding[] {
  if (relay.source === 'table' || server.idleSlotTimeoutS === null) return [];
  const id = 'slot-idle-timeout';
  if (server.idleSlotTimeoutS === 0) return [ok(id, 'idle_replication_slot_timeout is off')];
  const ms = server.idleSlotTimeoutS * 1000;
  const said = `idle_replication_slot_timeout is ${ageText(ms)}`;
  if (!insertThenDeleteSeen && ms >= SHORT_IDLE_TIMEOUT_MS) return [ok(id, said)];
  const cost = insertThenDeleteSeen ? OWN_DELETES_LOST : ': the table is read then, which costs time, not messages';
  return [
    warn(
      id,
      `${said}: the slot of a relay that is stopped, or waits for the broker, is lost after it${cost}`,
      'alter system set idle_replication_slot_timeout = 0; select pg_reload_conf(); (or longer than the longest outage of the broker; max_slot_wal_keep_size bounds the WAL)',
    ),
  ];
}

function senderTimeout({ server }: ServerEvidence, { relay }: Config): Finding[] {
  if (relay.source === 'table') return [];
  if (server.walSenderTimeoutMs > 0)
    return [ok('wal-sender-timeout', `wal_sender_timeout is ${server.walSenderTimeoutMs / 1000} s`)];
  const mend = "alter system set wal_sender_timeout = '60s'; select pg_reload_conf();";
  return [warn('wal-sender-timeout', 'wal_sender_timeout is 0: a dead reader holds the slot for ever', mend)];
}

function role({ server }: ServerEvidence, { relay }: Config): Finding[] {
  if (relay.source === 'table') return [];
  if (server.mayReplicate) return [ok('replication-role', `role ${server.role} may replicate`)];
  return [
    fail(
      'replication-role',
      `role ${server.role} may not replicate`,
      `alter role "${server.role}" replication; on Amazon RDS: grant rds_replication to "${server.role}";`,
    ),
  ];
}

function outputPlugins({ server }: ServerEvidence, { relay }: Config): Finding[] {
  const libraries = server.outputPluginLibraries;
  if (relay.source === 'table' || !libraries) return [];
  const listed = libraries.split(',').map((name) => name.trim().replaceAll('"', ''));
  if (listed.some((name) => name === 'pgoutput' || name === '*')) return [];
  return [
    fail('output-plugins', 'output_plugin_libraries does not list pgoutput', 'add pgoutput to output_plugin_libraries'),
  ];
}

function slot({ slot: found, slotName, server, insertThenDeleteSeen }: ServerEvidence, { relay }: Config): Finding[] {
  if (relay.source === 'table') {
    if (found?.database !== server.database) return [];
    const mend = `select pg_drop_replication_slot('${slotName}'); it keeps WAL, and relay.source: table does not read it`;
    return [warn('slot', `replication slot ${slotName} is left over`, mend)];
  }
  if (!found) return [ok('slot', `replication slot ${slotName} does not exist yet; the start makes it`)];
  if (found.database !== server.database || found.plugin !== 'pgoutput') {
    const owner = `database ${found.database ?? '(none)'}, plugin ${found.plugin ?? '(physical)'}`;
    return [
      fail('slot', `replication slot ${slotName} belongs to ${owner}`, 'set another relay.name; do not drop that slot'),
    ];
  }
  switch (found.walStatus) {
    case 'lost':
      return [
        warn(
          'slot',
          `replication slot ${slotName} is lost${insertThenDeleteSeen ? OWN_DELETES_LOST : ''}`,
          'nothing by hand: the next start replaces it and reads the table',
        ),
      ];
    case 'unreserved':
    case 'extended': {
      const soon = found.walStatus === 'unreserved' ? 'is about to be lost' : 'keeps more WAL than max_wal_size';
      const mend = 'see `waybill status`: is the relay running, and is the broker taking messages?';
      return [warn('slot', `replication slot ${slotName} ${soon}`, mend)];
    }
    default:
      return [
        ok(
          'slot',
          `replication slot ${slotName} is ${found.active ? 'in use' : 'not in use'}, ${found.walStatus ?? ''}`,
        ),
      ];
  }
}

/** PostgreSQL 17 and later can carry a slot over to a standby; without standbys there is nothing to carry it to. */
function failover(
  { server, slot: found, slotName, insertThenDeleteSeen }: ServerEvidence,
  { relay }: Config,
): Finding[] {
  if (relay.source === 'table' || server.version < 170_000 || server.physicalStandbys === 0 || !found) return [];
  const id = 'slot-failover';
  if (found.failover !== true) {
    return [
      warn(
        id,
        `replication slot ${slotName} does not follow a failover: after one, the relay reads the table${insertThenDeleteSeen ? OWN_DELETES_LOST : ''}`,
        `stop the relay, select pg_drop_replication_slot('${slotName}'); the next start makes one that does`,
      ),
    ];
  }
  if (server.synchronizedStandbySlots === '') {
    return [
      warn(
        id,
        'synchronized_standby_slots is empty: the relay may publish what no standby has yet',
        "alter system set synchronized_standby_slots = '<slots of the standbys>'; select pg_reload_conf(); and on each standby sync_replication_slots = on",
      ),
    ];
  }
  return [ok(id, `replication slot ${slotName} follows a failover where a standby has sync_replication_slots = on`)];
}

function prepared({ transactions, ages }: ServerEvidence): Finding {
  const [oldest] = transactions.prepared;
  if (!oldest) return ok('prepared-transactions', 'no prepared transactions');
  const said = `prepared transaction "${oldest.gid}" is ${ageText(oldest.ageMs)} old; its rows are not published, and WAL is kept for it`;
  return oldest.ageMs < ages.preparedMs
    ? ok('prepared-transactions', `prepared transactions come and go; the oldest is ${ageText(oldest.ageMs)} old`)
    : warn('prepared-transactions', said, `commit prepared '${oldest.gid}'; or rollback prepared '${oldest.gid}';`);
}

function oldSessions({ transactions, server, ages }: ServerEvidence): Finding {
  const [oldest] = transactions.sessions;
  if (!oldest) {
    const sight = server.seesAllActivity ? '' : ' (seen only of this role; grant pg_read_all_stats to see all)';
    return ok('old-transactions', `no transaction is older than ${ageText(ages.transactionMs)}${sight}`);
  }
  return warn(
    'old-transactions',
    `process ${oldest.pid} (${oldest.application}, ${oldest.state}) has a transaction open for ${ageText(oldest.ageMs)}: WAL is kept, and a new slot would wait for it`,
    `find out what it does; to end it: select pg_terminate_backend(${oldest.pid});`,
  );
}

function standby({ server }: ServerEvidence): Finding[] {
  if (server.physicalStandbys === 0) return [];
  if (server.synchronousStandbyNames !== '') return [ok('standbys', 'a standby is synchronous')];
  return [
    warn(
      'standbys',
      'the standbys are asynchronous: after a promotion, messages may be out whose rows the new primary never had',
      'set synchronous_standby_names, or accept it',
    ),
  ];
}

function clock({ clockDifferenceMs }: ServerEvidence): Finding {
  const seconds = Math.round(Math.abs(clockDifferenceMs) / 1000);
  if (Math.abs(clockDifferenceMs) <= CLOCK_LIMIT_MS) return ok('clock', 'the clocks here and on the database agree');
  const finding = `the clock here is ${seconds} s ${clockDifferenceMs > 0 ? 'ahead of' : 'behind'} the database's`;
  return warn('clock', finding, 'synchronise both (NTP); ages and times in messages are wrong by that');
}
