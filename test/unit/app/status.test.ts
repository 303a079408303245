import { describe, expect, it } from 'vitest';
import { ALL_IN_REACH } from '../../../src/app/session-view.js';
import { findProblems } from '../../../src/app/status-problems.js';
import type { StatusFacts } from '../../../src/app/status.js';
import { formatStatus } from '../../../src/cli/status.js';
import type { LiveStatus } from '../../../src/app/live-status.js';
import { loadConfig } from '../../../src/config/load.js';
import { relayEntry, slotEntry } from './evidence.js';

const config = loadConfig({
  environment: { WAYBILL_DATABASE_URL: 'postgres://localhost/shop', WAYBILL_BROKER_URL: 'amqp://localhost' },
  readFile: () => '',
});

const HISTORY = { rows: 9_000_000, bytes: 2e9, partitions: 8 };

const HEALTHY: StatusFacts = {
  at: '2026-01-01T03:00:00.000Z',
  relay: 'default',
  relayEnabled: true,
  schema: 'waybill',
  activity: 'active',
  database: { error: null, name: 'shop', schemaVersion: 1, neededSchemaVersion: 1, systemIdentifier: '7000' },
  record: relayEntry({}),
  otherRelays: [],
  slotName: 'waybill_shop_waybill_default',
  slot: slotEntry({}),
  backlog: {
    states: [{ state: 'ready', count: 3, accuracy: 'exact' as const, oldestAgeMs: 400 }],
    tableBytes: 65_536,
    history: HISTORY,
  },
  parkedErrors: [],
  consumers: [],
  live: null,
  broker: {
    error: null,
    exchange: 'waybill.events',
    facts: { version: '3.10.8', cluster: 'rabbit@a', vhost: '/', exchange: 'fits', lock: 'held' },
  },
};

function problems(change: Partial<StatusFacts>) {
  return findProblems({ ...HEALTHY, ...change }, config);
}

const OLD = { state: 'ready', count: 5, accuracy: 'exact' as const, oldestAgeMs: 600_000 };
const PARKED = { state: 'parked', count: 2, accuracy: 'exact' as const, oldestAgeMs: 7_200_000 };
const refused = { code: 'WAYBILL_DATABASE_UNAVAILABLE', message: 'connection refused', hint: 'Is it running?' };

const IN_REACH = ALL_IN_REACH;
const holder = (pid: number | null, prepared: string | null = null) => ({
  pid,
  user: 'reports',
  application: null,
  prepared,
});

const LIVE: LiveStatus = {
  at: '2026-01-02T03:04:05.000Z',
  version: '1.0.0',
  pid: 1,
  uptimeSeconds: 60,
  relay: 'default',
  schema: 'waybill',
  ready: true,
  reason: null,
  phase: 'streaming',
  phaseForSeconds: 7_200,
  sessions: 1,
  throughput: { over10s: 1234.4, over60s: null },
  connections: { database: true, replication: true, broker: true },
  brokerBlocked: false,
  inFlight: 20,
  inFlightBytes: 2_000,
  narrow: false,
  unsettled: 30,
  unusableExchanges: [],
  outOfReach: IN_REACH,
  maxInFlight: 2_000,
  maxInFlightBytes: 67_108_864,
  eventLoopLagSeconds: 0,
  counters: { published: 12_345, resent: 6 } as LiveStatus['counters'],
};

describe('problems', () => {
  it('are none when all is well', () => expect(problems({})).toEqual([]));

  it.each<[string, string, string, Partial<StatusFacts>]>([
    [
      'F121 a relay that runs and is not ready',
      'not-ready',
      'waybill doctor',
      { live: { ...LIVE, ready: false, reason: 'RabbitMQ blocks publishing' } },
    ],
    [
      '3.3 rows that another session has locked',
      'locked-rows',
      'psql -c "select pg_terminate_backend(4711)"',
      { live: { ...LIVE, outOfReach: { ...IN_REACH, locked: 3, lockedForMs: 61_000, holders: [holder(4711)] } } },
    ],
    [
      '3.3 rows that a prepared transaction has locked',
      'locked-rows',
      `psql -c "rollback prepared 'it''s mine'"`,
      {
        live: {
          ...LIVE,
          outOfReach: { ...IN_REACH, locked: 1, lockedForMs: 61_000, holders: [holder(null, "it's mine")] },
        },
      },
    ],
    [
      'fact 16 rows that a constraint refuses',
      'refused-rows',
      'waybill doctor',
      {
        live: {
          ...LIVE,
          outOfReach: { ...IN_REACH, refused: 2, refusal: { messageId: 'id-1', seq: '1', sqlState: '23514' } },
        },
      },
    ],
    ['no relay', 'stopped', 'waybill run', { activity: 'stopped' }],
    ['a slot that is not there', 'slot', 'waybill run', { slot: null }],
    ['F27 a lost slot', 'slot', 'waybill run', { slot: slotEntry({ walStatus: 'lost' }) }],
    ['a slot nearly lost', 'slot', 'waybill doctor', { slot: slotEntry({ safeWalBytes: 1e6 }) }],
    ['F131 a foreign slot', 'slot', 'waybill doctor', { slot: slotEntry({ database: 'other' }) }],
    ['much kept WAL', 'kept-wal', 'waybill doctor', { slot: slotEntry({ keptWalBytes: 3 * 2 ** 30 }) }],
    ['old rows', 'behind', 'waybill doctor', { backlog: { states: [OLD], tableBytes: 1, history: HISTORY } }],
    [
      'parked rows',
      'parked',
      'waybill outbox list --state parked',
      { backlog: { states: [PARKED], tableBytes: 1, history: HISTORY } },
    ],
    [
      'F56 another cluster',
      'identity',
      'waybill relay adopt --expect 7000',
      { record: relayEntry({ systemIdentifier: '1' }) },
    ],
    [
      'F56 another broker',
      'identity',
      'waybill relay adopt --expect 7000',
      { record: relayEntry({ brokerCluster: 'b' }) },
    ],
    ['a second relay', 'second-relay', 'waybill relay list', { otherRelays: ['two'] }],
    ['no database', 'database', 'waybill doctor', { database: { ...HEALTHY.database, error: refused } }],
    [
      'no schema',
      'schema',
      'waybill migrate up',
      { database: { ...HEALTHY.database, error: { code: 'WAYBILL_SCHEMA_MISSING', message: 'none', hint: null } } },
    ],
    ['no broker', 'broker', 'waybill doctor', { broker: { ...HEALTHY.broker, facts: null, error: refused } }],
  ])('%s', (_, id, next, change) => {
    const found = problems(change);
    expect(found.map((problem) => problem.id)).toEqual([id]);
    expect(found[0]?.next).toContain(next);
  });

  it('a slot that is gone loses nothing, but what applications deleted themselves', () => {
    for (const slot of [null, slotEntry({ walStatus: 'lost' })]) {
      expect(problems({ slot })[0]?.problem).toContain('nothing is lost');
      const deleting = problems({ slot, record: relayEntry({ insertThenDeleteSeen: true }) })[0]?.problem;
      expect(deleting).not.toContain('nothing is lost');
      expect(deleting).toContain('deleted themselves');
    }
  });

  it('a configuration that only consumes does not miss a relay', () => {
    const consuming = { ...config, relay: { ...config.relay, enabled: false } };
    const nothingRuns = { relayEnabled: false, activity: 'stopped' as const, slot: null, otherRelays: ['two'] };
    const facts = { ...HEALTHY, ...nothingRuns, broker: { ...HEALTHY.broker, facts: null, error: refused } };
    expect(findProblems(facts, consuming).map(({ id }) => id)).toEqual(['broker']);
    expect(findProblems(facts, config).map(({ id }) => id)).toEqual(['broker', 'second-relay', 'stopped', 'slot']);
    expect(formatStatus({ ...facts, problems: [] })).toMatch(/^relay +none in this configuration \(relay: false\)\n/);
  });

  it('a first start is no problem but that nothing runs', () => {
    expect(problems({ record: null, slot: null, activity: 'stopped' }).map(({ id }) => id)).toEqual(['stopped']);
  });
});

describe('the text', () => {
  const shown = (change: Partial<StatusFacts>) => formatStatus({ ...HEALTHY, ...change, problems: problems(change) });

  it('is aligned and says that all is well', () => {
    expect(shown({})).toBe(
      [
        'relay        default of schema waybill: active',
        'live         no answer at admin.listen (off, or on another machine)',
        'last holder  host-a:4242 since 3 h (epoch 3)',
        'checkpoint   0/1000028, 2 s ago',
        'slot         waybill_shop_waybill_default: read by server process 4711',
        '             unconfirmed 512 B, WAL kept 1.0 KiB (reserved)',
        'backlog      ready  3  oldest 400 ms',
        '             (table 64.0 KiB)',
        'history      about 9,000,000 rows, 1.9 GiB in 8 partitions',
        'broker       RabbitMQ 3.10.8, rabbit@a, virtual host /; exchange waybill.events',
        '               is there',
        'schema       version 1, this program needs 1 (database shop)',
        '',
        'No problems.',
      ].join('\n'),
    );
  });

  it('shows what the running process says, or that it does not answer', () => {
    const lines = shown({ live: LIVE }).split('\n').slice(1, 5);
    expect(lines).toEqual([
      'live         streaming for 2 h',
      '             1,234 messages/s over 10 s, - over 1 min',
      '             in flight 20 of 2,000, unsettled 30',
      '             since its start: published 12,345, resent 6',
    ]);
    expect(shown({ live: { ...LIVE, narrow: true } })).toContain('in flight 20 of 1, because RabbitMQ stalled');
    expect(shown({})).toContain('no answer at admin.listen');
    expect(shown({ activity: 'stopped' })).not.toContain('admin.listen');
  });

  it('fits 80 columns, but for commands that are to be copied', () => {
    const parked = { error: `no exchange ${'of that name '.repeat(20)}`, count: 7, exampleId: 'id', exampleType: 't' };
    const text = shown({
      otherRelays: ['two'],
      slot: slotEntry({ walStatus: 'unreserved', safeWalBytes: 1 }),
      record: relayEntry({ systemIdentifier: '1', holder: `a-host.${'long.'.repeat(9)}example:4242` }),
      parkedErrors: [parked],
    });
    expect(text.split('\n').filter((line) => line.length > 80 && !line.startsWith('    next: '))).toEqual([]);
    expect(text).toContain('PROBLEMS');
  });

  it('shows consumers with what waits, and whose turn it is', () => {
    const billing = {
      name: 'billing',
      owner: 'team-a',
      queue: 'billing',
      handler: 'store',
      pausedAt: null,
      pausedBy: null,
      pausedReason: null,
      renamingTo: null,
      late: null,
      uncopied: null,
    };
    const states = [
      { state: 'dead', count: 1, accuracy: 'exact' as const, oldestAgeMs: 1 },
      { state: 'pending', count: 5_000, accuracy: 'at-least' as const, oldestAgeMs: 1 },
    ];
    const paused = {
      ...billing,
      name: 'emails',
      owner: null,
      pausedAt: new Date(0),
      pausedBy: 'operator' as const,
      pausedReason: 'a deployment',
      states: [],
    };
    const broken = { ...paused, name: 'sms', pausedBy: 'breaker' as const, pausedReason: 'HTTP 404' };
    const half = { ...billing, name: 'post', owner: null, renamingTo: 'letters', states: [] };
    expect(shown({ consumers: [half] })).toContain('             post is HALF RENAMED to letters\n');
    expect(problems({ consumers: [half] })).toEqual([
      {
        id: 'consumer-renaming',
        problem: expect.stringContaining('Consumer post is half renamed to letters:') as string,
        next: 'waybill consumer rename post letters',
      },
    ]);
    const text = shown({ consumers: [{ ...billing, states }, paused, broken] });
    expect(text).toContain('consumers    billing  team-a  dead 1, pending at least 5,000; oldest 1 ms\n');
    expect(text).toContain(
      '             emails           nothing waits\n             emails is PAUSED: a deployment\n',
    );
    expect(text).toContain('             the handler of sms is BROKEN: HTTP 404\n');
    expect(problems({ consumers: [{ ...billing, states }, paused, broken] })).toEqual([
      {
        id: 'dead',
        problem: 'Consumer billing (team-a) has given up 1 message.',
        next: 'waybill dead list --consumer billing',
      },
      {
        id: 'consumer-paused',
        problem: 'Consumer emails is paused: a deployment.',
        next: 'waybill consumer resume emails',
      },
      {
        id: 'consumer-broken',
        problem: 'The handler of consumer sms is broken: HTTP 404. It is tried with one message at a time.',
        next: 'waybill doctor',
      },
    ]);
  });

  it('says which consumers do not keep up, unless they are paused', () => {
    const late = { count: 200, accuracy: 'exact' as const, oldestAgeMs: 7 * 3_600_000 };
    const billing = {
      name: 'billing',
      owner: 'team-a',
      queue: 'billing',
      handler: 'sql',
      pausedAt: null,
      pausedBy: null,
      pausedReason: null,
      renamingTo: null,
      states: [
        { state: 'pending', ...late },
        { state: 'dead', count: 1, accuracy: 'exact' as const, oldestAgeMs: 9 * 3_600_000 },
      ],
      late,
      uncopied: null,
    };
    const mail = { ...billing, name: 'mail', owner: null, handler: 'store', states: [] };
    const mails = { ...mail, late: { ...late, count: 1_000, accuracy: 'at-least' as const } };
    const paused = { ...mail, name: 'sms', pausedAt: new Date(0), pausedBy: 'operator' as const };
    const found = problems({ consumers: [billing, mails, { ...mail, late: { ...late, count: 1 } }, paused] });
    const behind = { id: 'inbox-behind', next: 'waybill consumer list' };
    expect(found.filter(({ id }) => id !== 'dead')).toEqual([
      {
        ...behind,
        problem:
          '200 messages of consumer billing (team-a) are due for more than 5 min and not taken up; the oldest was received 7 h ago. Is a process running that has this consumer (waybill run), and does its handler keep up?',
      },
      {
        ...behind,
        problem:
          'At least 1,000 messages of consumer mail are due for more than 5 min and not taken up; the oldest was received 7 h ago. Does the application that claims them run, and keep up?',
      },
      {
        ...behind,
        problem:
          '1 message of consumer mail is due for more than 5 min and not taken up; the oldest was received 7 h ago. Does the application that claims them run, and keep up?',
      },
      { id: 'consumer-paused', problem: 'Consumer sms is paused.', next: 'waybill consumer resume sms' },
    ]);
    expect(shown({ consumers: [billing] })).toContain(
      'consumers    billing  team-a  pending 200, dead 1; oldest 7 h\n',
    );
  });

  it('F105 says which dead messages have no copy, and why', () => {
    const copies = { count: 3, refused: 0, accuracy: 'exact' as const, oldestAgeMs: 2 * 3_600_000 };
    const billing = {
      name: 'billing',
      owner: 'team-a',
      queue: 'billing',
      handler: 'sql',
      pausedAt: null,
      pausedBy: null,
      pausedReason: null,
      renamingTo: null,
      states: [],
      late: null,
      uncopied: copies,
    };
    const said = (uncopied: typeof copies | null) =>
      problems({ consumers: [{ ...billing, uncopied }] }).map(({ id, problem, next }) => [id, problem, next]);
    expect(said(null)).toEqual([]);
    expect(said({ ...copies, oldestAgeMs: 299_000 })).toEqual([]);
    expect(said(copies)).toEqual([
      [
        'copies',
        '3 dead messages of consumer billing have no copy on exchange waybill.dlx; the first died 2 h ago. Is a process running that has this consumer (waybill run), and what does its /readyz say of copies?',
        'waybill doctor',
      ],
    ]);
    expect(said({ ...copies, refused: 2 })[0]?.[1]).toContain(
      'RabbitMQ refused 2 of them, as the log says; they are tried again within the hour.',
    );
    expect(said({ ...copies, count: 1, refused: 1 })[0]?.[1]).toBe(
      '1 dead message of consumer billing has no copy on exchange waybill.dlx; it died 2 h ago. RabbitMQ refused it, as the log says; it is tried again within the hour.',
    );
    expect(said({ ...copies, count: 1_000, refused: 1_000, accuracy: 'at-least' as never })[0]?.[1]).toMatch(
      /^At least 1,000 dead messages .* RabbitMQ refused them, as the log says/,
    );
  });

  it('says where it did not count to the end, or not at all', () => {
    const states = [
      { ...PARKED, count: 10_000, accuracy: 'at-least' as const },
      { ...OLD, count: 2_400_000, accuracy: 'about' as const },
    ];
    const text = shown({ backlog: { states, tableBytes: 5e9, history: HISTORY } });
    expect(text).toContain('parked  at least 10,000  oldest 2 h');
    expect(text).toContain('ready   about 2,400,000  oldest 10 min');
    expect(text).toContain('history      about 9,000,000 rows, 1.9 GiB in 8 partitions');
  });

  it('puts the next command under each problem', () => {
    expect(shown({ activity: 'stopped' })).toContain(
      'PROBLEMS\n  - No relay is running; 3 rows wait to be published.\n    next: waybill run',
    );
  });

  it('one row is told as one', () => {
    const one = { count: 1, accuracy: 'exact' as const, oldestAgeMs: 1_000 };
    const states = ['ready', 'parked', 'blocked'].map((state) => ({ ...one, state }));
    const history = { rows: 1, bytes: 8_192, partitions: 1 };
    const error = { error: 'unroutable: no queue', count: 1, exampleId: 'id', exampleType: 't' };
    const facts = { activity: 'stopped' as const, backlog: { states, tableBytes: 1, history }, parkedErrors: [error] };
    const strict = { ...config, relay: { ...config.relay, ordering: 'strict' as const } };
    const told = findProblems({ ...HEALTHY, ...facts }, strict).map(({ problem }) => problem);
    expect(told).toEqual([
      'No relay is running; 1 row waits to be published.',
      '1 row is parked: it could not be published and is kept with its error. unroutable: no queue',
      '1 row is blocked behind a parked row of the same key.',
    ]);
    expect(shown(facts)).toContain('about 1 row, 8.0 KiB in 1 partition\n');
  });

  it('stays whole when nothing can be reached', () => {
    const nothing = {
      activity: 'unknown' as const,
      database: { ...HEALTHY.database, error: refused, name: null, schemaVersion: null, systemIdentifier: null },
      record: null,
      slotName: null,
      slot: null,
      backlog: null,
      broker: { ...HEALTHY.broker, facts: null, error: refused },
    };
    const text = shown(nothing);
    expect(text).toContain('broker  NOT REACHABLE');
    expect(text.match(/next: /g)).toHaveLength(2);
  });
});
