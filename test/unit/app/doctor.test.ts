import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { checkBroker, checkEncryption, checkPasswords } from '../../../src/app/doctor-broker.js';
import type { Finding } from '../../../src/app/doctor-findings.js';
import { checkSchemaObjects, type SchemaEvidence } from '../../../src/app/doctor-schema.js';
import { checkServer, OLD, type ServerEvidence } from '../../../src/app/doctor-server.js';
import { formatFindings } from '../../../src/cli/doctor.js';
import { loadConfig } from '../../../src/config/load.js';
import type { BrokerFacts } from '../../../src/rabbitmq/inspect.js';
import { relayEntry, slotEntry } from './evidence.js';

function configured(text = '') {
  const urls = 'database: { url: "postgres://localhost/shop" }\nbroker: { url: "amqp://localhost" }\n';
  return loadConfig({ file: { name: 'f', text: urls + text }, environment: {}, readFile: () => '' });
}

const HEALTHY_SERVER: ServerEvidence = {
  server: {
    version: 150_018,
    versionText: '15.18',
    database: 'shop',
    role: 'waybill_relay',
    inRecovery: false,
    walLevel: 'logical',
    maxReplicationSlots: 10,
    usedReplicationSlots: 1,
    maxWalSenders: 10,
    usedWalSenders: 1,
    maxSlotWalKeepMb: 8192,
    walSenderTimeoutMs: 60_000,
    idleSlotTimeoutS: null,
    synchronousStandbyNames: '',
    synchronizedStandbySlots: null,
    physicalStandbys: 0,
    outputPluginLibraries: null,
    mayReplicate: true,
    seesAllActivity: true,
    clock: new Date(0),
  },
  transactions: { sessions: [], prepared: [] },
  slotName: 'waybill_shop_waybill_default',
  insertThenDeleteSeen: false,
  slot: slotEntry({}),
  clockDifferenceMs: 3,
  ages: OLD,
};

const HEALTHY_SCHEMA: SchemaEvidence = {
  schemaVersion: 1,
  publication: { sendsInserts: true, hasOutbox: true, rowFilter: null, missingColumns: [] },
  table: { foreignColumns: [], rowSecurity: false, rowSecurityActive: false, children: [], missingGrants: [] },
  relays: [relayEntry({})],
  systemIdentifier: '7000',
};

const HEALTHY_BROKER: BrokerFacts = {
  version: '3.10.8',
  cluster: 'rabbit@a',
  vhost: '/',
  exchange: 'fits',
  lock: 'held',
};

type ServerChange = Omit<Partial<ServerEvidence>, 'server'> & { server?: Partial<ServerEvidence['server']> };

function server(change: ServerChange, text = ''): Finding[] {
  const evidence = { ...HEALTHY_SERVER, ...change, server: { ...HEALTHY_SERVER.server, ...change.server } };
  return notWell(checkServer(evidence, configured(text)));
}

function schema(change: Partial<SchemaEvidence>): Finding[] {
  return notWell(checkSchemaObjects({ ...HEALTHY_SCHEMA, ...change }, configured()));
}

function broker(change: Partial<BrokerFacts>, text = ''): Finding[] {
  return notWell(checkBroker({ ...HEALTHY_BROKER, ...change }, relayEntry({}), configured(text)));
}

function notWell(findings: Finding[]): Finding[] {
  return findings.filter(({ severity }) => severity !== 'ok');
}

it('a configuration that only consumes is not asked for what a relay needs', () => {
  const unfit = { walLevel: 'replica', mayReplicate: false, maxSlotWalKeepMb: -1, usedWalSenders: 99 };
  expect(server({ server: unfit }).map(({ id }) => id)).toContain('wal-level');
  expect(server({ server: unfit }, 'relay: false')).toEqual([]);
  expect(broker({ exchange: 'missing', cluster: 'other' }, 'relay: false')).toEqual([]);
});

describe('a healthy installation', () => {
  it('gives no warning', () => {
    expect([...server({}), ...schema({}), ...broker({}), ...notWell(checkEncryption(configured()))]).toEqual([]);
  });
});

it('where applications delete rows themselves, nothing says that a lost slot costs only time', () => {
  const said = (change: ServerChange): string => JSON.stringify(server(change));
  const cases: ServerChange[] = [
    { server: { maxSlotWalKeepMb: -1 } },
    { slot: slotEntry({ walStatus: 'lost' }) },
    { server: { idleSlotTimeoutS: 60 } },
    {
      server: { version: 170_000, physicalStandbys: 1, synchronousStandbyNames: 'a' },
      slot: slotEntry({ failover: false }),
    },
  ];
  for (const change of cases) {
    expect(said(change)).not.toContain('deleted themselves');
    expect(said({ ...change, insertThenDeleteSeen: true })).toContain(
      'rows that applications deleted themselves and that were not published yet',
    );
    expect(said({ ...change, insertThenDeleteSeen: true })).not.toContain('not messages');
  }
});

it('texts that cannot know whether applications delete rows themselves hold for both', () => {
  const files = ['src/app/relay-slot.ts', 'src/postgres/stream.ts', 'deploy/prometheus/waybill.rules.yaml'];
  for (const file of files) {
    const text = readFileSync(new URL(`../../../${file}`, import.meta.url), 'utf8');
    expect(text).toMatch(/applications\s+deleted themselves/);
    // Of handlers that are broken, it is true.
    expect(text.replace('not the messages; nothing is lost', '')).not.toMatch(/nothing is lost/i);
  }
});

describe('checks of the server', () => {
  it.each<[string, string, Finding['severity'], ServerChange]>([
    ['an old version', 'postgres-version', 'fail', { server: { version: 130_011 } }],
    ['a version newer than tested', 'postgres-version', 'warn', { server: { version: 190_000 } }],
    ['F39 a standby', 'primary', 'fail', { server: { inRecovery: true } }],
    ['F31 wal_level replica', 'wal-level', 'fail', { server: { walLevel: 'replica' } }],
    ['F32 no slot left', 'replication-slots', 'fail', { server: { usedReplicationSlots: 10 }, slot: undefined }],
    ['F32 no slot left beside ours', 'replication-slots', 'warn', { server: { usedReplicationSlots: 10 } }],
    [
      'F32 no WAL sender left',
      'wal-senders',
      'fail',
      { server: { usedWalSenders: 10 }, slot: slotEntry({ active: false }) },
    ],
    ['F41 unlimited WAL for slots', 'slot-keep-size', 'fail', { server: { maxSlotWalKeepMb: -1 } }],
    [
      'less WAL for slots than the relay allows itself',
      'slot-keep-size',
      'warn',
      { server: { maxSlotWalKeepMb: 1024 } },
    ],
    ['F30 no timeout for dead readers', 'wal-sender-timeout', 'warn', { server: { walSenderTimeoutMs: 0 } }],
    ['F27 a slot that is lost when it is idle', 'slot-idle-timeout', 'warn', { server: { idleSlotTimeoutS: 3600 } }],
    [
      'F27 the same after a long time, where applications delete rows themselves',
      'slot-idle-timeout',
      'warn',
      { server: { idleSlotTimeoutS: 604_800 }, insertThenDeleteSeen: true },
    ],
    ['F36 no right to replicate', 'replication-role', 'fail', { server: { mayReplicate: false } }],
    ['F67 pgoutput not allowed', 'output-plugins', 'fail', { server: { outputPluginLibraries: 'wal2json' } }],
    [
      'F25 a slot that does not follow a failover',
      'slot-failover',
      'warn',
      {
        server: { version: 180_000, physicalStandbys: 1, synchronousStandbyNames: 's', synchronizedStandbySlots: 's' },
        slot: slotEntry({ failover: false }),
      },
    ],
    [
      'F24 a slot that may run ahead of the standbys',
      'slot-failover',
      'warn',
      {
        server: { version: 180_000, physicalStandbys: 1, synchronousStandbyNames: 's', synchronizedStandbySlots: '' },
        slot: slotEntry({ failover: true }),
      },
    ],
    ['F27 a lost slot', 'slot', 'warn', { slot: slotEntry({ walStatus: 'lost' }) }],
    ['F27 a slot about to be lost', 'slot', 'warn', { slot: slotEntry({ walStatus: 'unreserved' }) }],
    ['F131 the slot of another database', 'slot', 'fail', { slot: slotEntry({ database: 'other' }) }],
    ['the slot of another plugin', 'slot', 'fail', { slot: slotEntry({ plugin: 'wal2json' }) }],
    ['F24 asynchronous standbys', 'standbys', 'warn', { server: { physicalStandbys: 1 } }],
    ['F118 clocks apart', 'clock', 'warn', { clockDifferenceMs: -9_000 }],
    [
      'F53 an old prepared transaction',
      'prepared-transactions',
      'warn',
      { transactions: { sessions: [], prepared: [{ gid: 'g', ageMs: 4e6 }] } },
    ],
    [
      'F132 an old open transaction',
      'old-transactions',
      'warn',
      {
        transactions: {
          prepared: [],
          sessions: [{ pid: 7, application: 'psql', state: 'idle in transaction', ageMs: 9e6 }],
        },
      },
    ],
  ])('%s', (_, id, severity, change) => {
    const found = server(change);
    expect(found).toMatchObject([{ id, severity }]);
    expect(found[0]?.mend?.length).toBeGreaterThan(10);
  });

  it('ask for nothing of logical replication when the table is the source', () => {
    const change = { walLevel: 'minimal', mayReplicate: false, maxSlotWalKeepMb: -1, usedReplicationSlots: 10 };
    expect(server({ server: change, slot: undefined }, 'relay: { source: table }')).toEqual([]);
    expect(server({}, 'relay: { source: table }')).toMatchObject([{ id: 'slot', severity: 'warn' }]);
  });
});

describe('checks of the schema', () => {
  const publication = { sendsInserts: true, hasOutbox: true, rowFilter: null, missingColumns: [] };
  const table = HEALTHY_SCHEMA.table;
  it.each<[string, string, Finding['severity'], Partial<SchemaEvidence>]>([
    ['F33 no publication', 'publication', 'fail', { publication: undefined }],
    ['F34 outbox not in it', 'publication', 'fail', { publication: { ...publication, hasOutbox: false } }],
    ['F35 no inserts', 'publication', 'fail', { publication: { ...publication, sendsInserts: false } }],
    ['F35 a row filter', 'publication', 'fail', { publication: { ...publication, rowFilter: '(seq > 5)' } }],
    ['F35 a column list', 'publication', 'fail', { publication: { ...publication, missingColumns: ['key'] } }],
    ['F37 a missing grant', 'grants', 'fail', { table: { ...table, missingGrants: ['delete on outbox'] } }],
    [
      'F133 row security that hides',
      'row-security',
      'fail',
      { table: { ...table, rowSecurity: true, rowSecurityActive: true } },
    ],
    ['F133 row security', 'row-security', 'warn', { table: { ...table, rowSecurity: true } }],
    ['F133 inheritance', 'children', 'warn', { table: { ...table, children: ['outbox_2'] } }],
    ['a second relay', 'second-relay', 'fail', { relays: [relayEntry({}), relayEntry({ name: 'two' })] }],
    ['F56 F66 another cluster', 'identity', 'fail', { systemIdentifier: '8000' }],
  ])('%s', (_, id, severity, change) => {
    expect(schema(change)).toMatchObject([{ id, severity }]);
  });

  it('F133 columns of the user are fine', () => {
    expect(schema({ table: { ...table, foreignColumns: ['tenant'] } })).toEqual([]);
  });
});

describe('checks of the broker', () => {
  it.each<[string, string, Finding['severity'], Partial<BrokerFacts>, string]>([
    ['an old version', 'broker', 'warn', { version: '3.9.13' }, ''],
    ['F72 no exchange, and none declared', 'exchange', 'fail', { exchange: 'missing' }, 'relay: { topology: check }'],
    ['F90 another kind of exchange', 'exchange', 'warn', { exchange: 'differs' }, ''],
    ['F82 no permission', 'exchange', 'fail', { exchange: 'refused' }, ''],
    ['another cluster', 'broker-identity', 'fail', { cluster: 'rabbit@b' }, ''],
    ['another virtual host', 'broker-identity', 'fail', { vhost: 'staging' }, ''],
  ])('%s', (_, id, severity, change, text) => {
    expect(broker(change, text)).toMatchObject([{ id, severity }]);
  });

  it.each(['4.0.5', '3.10.0', '3.13.7', '10.1.0'])('version %s is new enough', (version) => {
    expect(broker({ version })).toEqual([]);
  });

  it('an exchange that the start will declare is fine', () => expect(broker({ exchange: 'missing' })).toEqual([]));

  it('plaintext over a network is told', () => {
    const text =
      'database: { url: "postgres://far/shop", tls: { mode: insecure-plaintext } }\nbroker: { url: "amqps://far" }';
    const config = loadConfig({ file: { name: 'f', text }, environment: {}, readFile: () => '' });
    expect(notWell(checkEncryption(config))).toMatchObject([{ id: 'database-encryption', severity: 'warn' }]);
  });

  it('a password that is a word of everybody is told, once for each place', () => {
    const passwords = (database: string, broker: string): unknown =>
      checkPasswords(
        loadConfig({
          file: {
            name: 'f',
            text: `database: { url: "postgres://me:${database}@localhost/shop" }\nbroker: { url: "amqp://me:${broker}@localhost" }`,
          },
          environment: {},
          readFile: () => '',
        }),
      ).map(({ severity, finding }) => `${severity} ${finding.split(' ')[3]}`);
    expect(passwords('waybill', 'Guest')).toEqual(['warn database.url', 'warn broker.url']);
    expect(passwords('waybill1', 'ohng7Oos')).toEqual([]);
  });
});

it('on a terminal no line is longer than it is wide, but for commands that are to be copied', () => {
  const findings: Finding[] = [
    {
      id: 'a',
      severity: 'fail',
      finding: 'is broken in many ways, one after the other',
      mend: 'mend it piece by piece',
    },
    { id: 'b', severity: 'warn', finding: 'is odd', mend: 'waybill relay adopt --expect 7300000000000000000' },
  ];
  expect(formatFindings(findings, 40)).toBe(
    [
      'WARN  b: is odd',
      '      mend: waybill relay adopt --expect 7300000000000000000',
      'FAIL  a: is broken in many ways, one',
      '      after the other',
      '      mend: mend it piece by piece',
      '',
      '1 failed, 1 warning.',
    ].join('\n'),
  );
  // What is read by grep is one line.
  expect(formatFindings(findings)).toContain('FAIL  a: is broken in many ways, one after the other\n');
});

it('what needs a hand is printed last, with its mend and a count', () => {
  const text = formatFindings([
    { id: 'a', severity: 'fail', finding: 'is broken', mend: 'mend it' },
    { id: 'b', severity: 'ok', finding: 'is well', mend: null },
    { id: 'c', severity: 'warn', finding: 'is odd', mend: 'look' },
  ]);
  expect(text).toBe(
    'ok    b: is well\nWARN  c: is odd\n      mend: look\nFAIL  a: is broken\n      mend: mend it\n\n1 failed, 1 warning.',
  );
});
