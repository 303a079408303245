import { z } from 'zod';
import { admin } from './admin.js';
import { consumersSection } from './consumers.js';
import { choice, command, duration, flag, integer, optionalUrl, size, text, url } from './leaves.js';
import { checkExchangeName, checkExchangeType, checkRelayName, checkRoutingKey, checkSchemaName } from './names.js';
import { tls } from './tls.js';
import { checkBrokerUrl, checkDatabaseUrl } from './urls.js';

const database = z.strictObject({
  url: url(checkDatabaseUrl, {
    values: 'postgres://user:password@host:5432/database',
    doc: 'The database with the outbox. Point it at the primary, not at a pooler in transaction mode. Several hosts (`h1:5432,h2:5432`) are tried in order; the first that takes writes is used.',
  }),
  replicationUrl: optionalUrl(
    checkDatabaseUrl,
    {
      values: 'postgres://user:password@host:5432/database',
      doc: 'For the replication connection, where `url` goes through a pooler. The same database.',
    },
    'database.url',
  ),
  passwordCommand: command(
    'Run at each connection; what it prints replaces the password of the URL, for tokens that expire. No shell; `{host}`, `{port}` and `{user}` stand for those of the connection; 10 s at most.',
  ),
  schema: text('waybill', checkSchemaName, {
    kind: 'name',
    values: 'a-z, 0-9, _',
    doc: 'The schema that holds the Waybill tables; one relay serves one schema.',
  }),
  tls: tls.prefault({}),
});

const broker = z.strictObject({
  url: url(checkBrokerUrl, {
    values: 'amqps://user:password@host:5671/vhost',
    doc: 'The RabbitMQ broker. Off this machine it must be amqps://, or `tls.mode: insecure-plaintext`. Several hosts of one cluster (`h1:5671,h2:5671`) are tried in order.',
  }),
  passwordCommand: command(
    'Run at each connection; what it prints replaces the password of the URL, as for `database.passwordCommand`.',
  ),
  tls: tls.prefault({}),
  heartbeat: duration(
    '10s',
    { min: '1s', max: '60s' },
    'A silent broker is given up after two to three of these. It cannot be switched off, because then a frozen broker is never noticed.',
  ),
  connectTimeout: duration('10s', { min: '100ms', max: '5m' }, 'How long one attempt to connect may take.'),
});

const relay = z.strictObject({
  enabled: flag(true, 'Whether the relay runs. `relay: false` says the same: for a process that only consumes.'),
  name: text('default', checkRelayName, {
    kind: 'name',
    values: 'a-z, 0-9, _, -',
    doc: "The relay's name, a part of its slot and of its lock queue. Changing it later needs `waybill relay drop`.",
  }),
  source: choice(
    ['wal', 'table'],
    'wal',
    'Where committed rows come from: logical replication, or polling the table (where wal_level is not logical).',
  ),
  exchange: text('waybill.events', checkExchangeName, {
    kind: 'name',
    values: '1 to 255 bytes',
    doc: 'The exchange for rows that name none.',
  }),
  exchangeType: text('topic', checkExchangeType, {
    kind: 'name',
    values: 'topic, direct, fanout, headers, x-...',
    doc: 'Its type, used when Waybill declares it.',
  }),
  topology: choice(
    ['assert', 'check', 'none'],
    'assert',
    'At start: declare the exchange, only look that it is there, or neither.',
  ),
  routingKey: text('{type}', checkRoutingKey, {
    kind: 'text',
    values: 'text with {type}, {key}, {schema_version}',
    doc: 'The routing key for rows that name none.',
  }),
  ordering: choice(
    ['pipelined', 'strict'],
    'pipelined',
    'pipelined: commit order on the wire; only a refused or returned row lets later ones of its key go first. strict: one row in flight per key, and a row that waits holds the later ones of its key until it is retried or discarded.',
  ),
  onUnroutable: z
    .strictObject({
      retryFor: duration('10m', { min: '0s', max: '7d' }, 'How long a message that no queue takes is tried again.'),
      then: choice(
        ['park', 'accept'],
        'park',
        'What follows: keep the row as parked, or settle it as if it had been taken.',
      ),
    })
    .prefault({}),
  history: choice(
    ['trace', 'full', 'off'],
    'trace',
    'What is kept of a published row: its identity and times, all of it (so that it can be replayed), or nothing.',
  ),
  historyRetention: duration('7d', { min: '1h', max: '3650d' }, 'How long that is kept; whole UTC days are dropped.'),
  maxInFlight: integer(2000, 1, 60_000, 'Most messages published and not yet confirmed.'),
  maxInFlightBytes: size(
    '64MiB',
    { min: '1MiB', max: '4GiB' },
    'Most bytes of bodies published and not yet confirmed.',
  ),
  checkpointInterval: duration(
    '200ms',
    { min: '10ms', max: '10s' },
    'How often confirmed rows are removed and the position is stored; a crash repeats at most about this much.',
  ),
  sweepInterval: duration(
    '5m',
    { min: '10s', max: '1d' },
    'How often the table is searched for rows that the stream has missed.',
  ),
  maxKeptWal: size(
    '4GiB',
    { min: '64MiB', max: '1024GiB' },
    'In an outage of the broker, give the stream position up rather than keep more WAL than this; the rows are then read from the table. While the relay works, rows in the table that cannot be set aside hold the position up to this limit.',
  ),
  stallTimeout: duration(
    '30s',
    { min: '1s', max: '10m' },
    'Without progress for this long the replication connection is let go, so that PostgreSQL can shut down.',
  ),
  confirmTimeout: duration(
    '30s',
    { min: '1s', max: '10m' },
    'Without a confirm for this long the broker connection is closed and everything in flight is sent again.',
  ),
  drainTimeout: duration(
    '25s',
    { min: '1s', max: '10m' },
    'How long a stop waits for confirms. Keep it under the grace period of what stops the process (Kubernetes: 30s).',
  ),
  maxBodyBytes: size(
    '15MiB',
    { min: '1KiB', max: '15MiB' },
    "Larger bodies are parked. Not above the broker's max_message_size (16 MiB on RabbitMQ 4).",
  ),
});

const log = z.strictObject({
  level: choice(['debug', 'info', 'warn', 'error'], 'info', 'The least serious lines that are written.'),
  format: choice(['auto', 'json', 'pretty'], 'auto', 'auto: pretty on a terminal, else one JSON object a line.'),
  messages: choice(['problems', 'all'], 'problems', 'Log lines for messages that failed, or for every message.'),
});

const retention = z.strictObject({
  firstTime: duration(
    '30d',
    { min: '1h', max: '3650d' },
    'How long `first_time` knows what it was told. Longer than a webhook, a request or an event may be repeated.',
  ),
  newer: duration(
    '90d',
    { min: '1d', max: '3650d' },
    'How long after its last version an entity is known to `newer`; an old event that comes later than that counts as new. Never less than any consumer remembers ids and retries messages; what waits in the inbox keeps it longer.',
  ),
  actions: duration('365d', { min: '30d', max: '3650d' }, "How long operators' acts stay in `action_log`."),
  interval: duration(
    '1m',
    { min: '100ms', max: '1d' },
    'How often all that is looked for whose retention is over: this, and what each consumer keeps.',
  ),
});

/** Every key of the configuration, with its documentation, unit, bounds and default: the one source of all of them. */
export const settings = z.strictObject({
  database: database.prefault({}),
  broker: broker.prefault({}),
  relay: relay.prefault({}),
  consumers: consumersSection,
  retention: retention.prefault({}),
  admin: admin.prefault({}),
  log: log.prefault({}),
});

/** The settings after reading, durations in milliseconds and sizes in bytes, under the names a person writes. */
export type Settings = z.output<typeof settings>;
