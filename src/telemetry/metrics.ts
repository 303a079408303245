/** What a label may say. Label values come from the configuration or from these lists, never from data (F120). */
export const LABEL_VALUES = {
  relay: 'configuration',
  consumer: 'configuration',
  version: 'configuration',
  connection: ['database', 'replication', 'broker', 'publishing'],
  phase: ['connecting', 'standby', 'waiting-for-broker', 'starting', 'table-pass', 'streaming', 'draining'],
  state: ['scheduled', 'parked', 'blocked', 'cancelled', 'discarded'],
  status: ['pending', 'running', 'waiting', 'blocked', 'dead'],
} as const satisfies Record<string, 'configuration' | readonly string[]>;

type LabelName = keyof typeof LABEL_VALUES;

/** One metric. The unit ends its name: `_seconds`, `_bytes`; `_total` is a counter. */
export interface MetricDefinition {
  type: 'counter' | 'gauge' | 'histogram';
  labels: readonly LabelName[];
  help: string;
  /** Upper bounds of a histogram. */
  buckets?: readonly number[];
  /** Whose metric it is; those of a part that does not run are not shown. */
  of: 'relay' | 'consumers' | 'process';
}

/** The values that the table consists of, with their exact types. */
function relay<T extends 'counter' | 'gauge', L extends LabelName[]>(type: T, help: string, ...more: L) {
  const labels: readonly ['relay', ...L] = ['relay', ...more];
  return { type, help, labels, of: 'relay' } as const;
}

function consumer<T extends 'counter' | 'gauge', L extends LabelName[]>(type: T, help: string, ...more: L) {
  const labels: readonly ['consumer', ...L] = ['consumer', ...more];
  return { type, help, labels, of: 'consumers' } as const;
}

/** From a millisecond to minutes: an outage must not vanish in the last bucket. */
const LATENCY_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800];

/**
 * Every metric of the process: the one source of what is registered, of the README's table, and of what rules and
 * dashboards may name. "By the database" means read from it at `admin.collectInterval`; such a metric is absent while it
 * cannot be read, and never asked for by a scrape.
 */
export const METRICS = {
  waybill_outbox_published_total: relay('counter', 'Messages handed to RabbitMQ, each copy counted.'),
  waybill_outbox_confirmed_total: relay('counter', 'Messages that RabbitMQ confirmed and did not return.'),
  waybill_outbox_returned_total: relay('counter', 'Messages returned because no queue took them.'),
  waybill_outbox_nacked_total: relay('counter', 'Messages that RabbitMQ refused to store for now (a full queue).'),
  waybill_outbox_resent_total: relay(
    'counter',
    'Messages sent again on a connection that goes on, after a nack or a lost channel. What is repeated after a crash or a lost connection counts as published alone.',
  ),
  waybill_outbox_settled_total: relay('counter', 'Rows whose fate is stored: removed from the outbox, or held in it.'),
  waybill_outbox_scheduled_total: relay('counter', 'Rows set aside until they are due or tried again.'),
  waybill_outbox_parked_total: relay('counter', 'Rows set aside as impossible to publish, for a person to look at.'),
  waybill_outbox_blocked_total: relay(
    'counter',
    'Rows kept behind an earlier row of their key (relay.ordering: strict).',
  ),
  waybill_outbox_accepted_total: relay(
    'counter',
    'Rows given up by onUnroutable.then: accept, although no queue took them.',
  ),
  waybill_outbox_expired_total: relay('counter', 'Rows not published because their expires_at had passed.'),
  waybill_outbox_gone_total: relay(
    'counter',
    'Published rows that were not in the table any more when they were settled.',
  ),
  waybill_outbox_rebuilt_total: relay('counter', 'Rows published by a table pass: first start, or a lost slot.'),
  waybill_outbox_swept_total: relay('counter', 'Rows that the stream had missed and the sweep found.'),
  waybill_outbox_skipped_total: relay('counter', 'Rows that the log brought again and that were not sent again.'),
  waybill_outbox_commit_to_confirm_seconds: {
    type: 'histogram',
    labels: ['relay'],
    buckets: LATENCY_BUCKETS,
    help: "From the commit of a row to RabbitMQ's confirm, of rows from the log. The commit's time is the database's; ours is compared with it every 30 s, so expect errors of milliseconds.",
    of: 'relay',
  },
  waybill_outbox_in_flight: relay('gauge', 'Messages published and not yet answered by RabbitMQ.'),
  waybill_outbox_in_flight_bytes: relay('gauge', 'Bytes of their bodies and headers.'),
  waybill_outbox_in_flight_limit: relay('gauge', 'relay.maxInFlight: how many there may be.'),
  waybill_outbox_unsettled: relay('gauge', 'Rows taken up whose fate is not stored yet, those in flight among them.'),
  waybill_outbox_locked: relay(
    'gauge',
    'Rows whose fate cannot be stored, because another session has locked them for more than 5 s (or their transaction waits for a synchronous standby).',
  ),
  waybill_outbox_refused: relay(
    'gauge',
    'Rows that a constraint or trigger of your own keeps the relay from removing, setting aside or letting go.',
  ),
  waybill_outbox_pending: relay('gauge', 'Rows ready to be published, by the database.'),
  waybill_outbox_pending_is_estimate: relay(
    'gauge',
    '1 if waybill_outbox_pending is an estimate: there are too many to count.',
  ),
  waybill_outbox_oldest_pending_seconds: relay(
    'gauge',
    'Age of the oldest row that is ready, by the database; 0 if there is none.',
  ),
  waybill_outbox_held: relay(
    'gauge',
    'Rows in another state than ready, by the database; 5000 means that many or more.',
    'state',
  ),
  waybill_outbox_table_bytes: relay(
    'gauge',
    'Size of the outbox with its indexes, dead rows included, by the database.',
  ),
  waybill_slot_lag_bytes: relay('gauge', 'WAL that the relay has not confirmed, by the database.'),
  waybill_slot_kept_wal_bytes: relay(
    'gauge',
    "WAL that PostgreSQL keeps on its disk for the relay's slot, by the database.",
  ),
  waybill_slot_safe_wal_bytes: relay(
    'gauge',
    'WAL that may still be written before the slot is lost, by the database; absent without max_slot_wal_keep_size.',
  ),
  waybill_checkpoint_age_seconds: relay(
    'gauge',
    'Since the position was stored last, by the database. Grows also while nothing is written to the outbox.',
  ),
  waybill_collected_timestamp_seconds: relay(
    'gauge',
    'When the metrics by the database were read last, seconds since 1970.',
  ),
  waybill_relay_active: relay(
    'gauge',
    '1 if this process is the one that publishes, 0 if it stands by or cannot work.',
  ),
  waybill_relay_ready: relay('gauge', '1 if /readyz says that the relay is ready.'),
  waybill_relay_phase: relay('gauge', '1 for the phase that the relay is in.', 'phase'),
  waybill_relay_sessions_total: relay('counter', 'Sessions begun; each reconnection begins one.'),
  waybill_connection_up: relay('gauge', '1 if the connection is open.', 'connection'),
  waybill_broker_blocked: relay('gauge', '1 while RabbitMQ blocks publishing (memory or disk alarm).'),

  waybill_inbox_received_total: consumer('counter', 'Deliveries taken from the queue.'),
  waybill_inbox_applied_total: consumer('counter', 'Messages whose effect is committed.'),
  waybill_inbox_duplicate_total: consumer(
    'counter',
    'Deliveries of a message that was there already, with the same body.',
  ),
  waybill_inbox_conflict_total: consumer('counter', 'Deliveries of a known message id with another body.'),
  waybill_inbox_retried_total: consumer('counter', 'Attempts that failed and are made again.'),
  waybill_inbox_deferred_total: consumer('counter', 'Attempts that found their data not there yet.'),
  waybill_inbox_abandoned_total: consumer(
    'counter',
    'Attempts that were begun and never ended (a crash, or an expired lease), whoever had begun them, by the database: the same in every process, so take the most and not the sum.',
  ),
  waybill_inbox_dead_total: consumer(
    'counter',
    'Messages given up by this process, for a person to look at. Those that applications give up, or whose leases expire, are in waybill_inbox_rows.',
  ),
  waybill_inbox_timers_refused_total: consumer(
    'counter',
    'What came to the retry queue and is no timer of this installation; it is dropped. Somebody else publishes there.',
  ),
  waybill_inbox_handler_seconds: {
    type: 'histogram',
    labels: ['consumer'],
    buckets: LATENCY_BUCKETS,
    help: 'How long a handler took: over HTTP one request; of sql one transaction, which handles up to 60 messages and, when they have just arrived, also writes them. Nothing of handler kind store.',
    of: 'consumers',
  },
  waybill_inbox_rows: consumer(
    'gauge',
    'Messages by status, by the database; 1000 (100 on a busy database) means that many or more.',
    'status',
  ),
  waybill_inbox_oldest_pending_seconds: consumer(
    'gauge',
    'Age of the oldest message that is not done, dead or discarded, by the database.',
  ),
  waybill_inbox_copies_waiting: consumer(
    'gauge',
    'Dead messages whose copy has not gone to the dead-letter exchange yet, by the database; 1000 means that many or more.',
  ),
  waybill_inbox_copies_refused: consumer(
    'gauge',
    'Those of waybill_inbox_copies_waiting that RabbitMQ has refused: each is tried again within the hour, and nobody else waits for it.',
  ),
  waybill_consumer_lag_messages: consumer('gauge', 'Messages in the queue that are not delivered yet.'),
  waybill_consumer_consuming: consumer(
    'gauge',
    '1 while messages are taken from the queue; 0 while its breaker is open, or RabbitMQ or PostgreSQL is away.',
  ),
  waybill_consumer_connection_up: consumer(
    'gauge',
    '1 if the connection is open; publishing is the one for timers and copies of dead messages.',
    'connection',
  ),
  waybill_consumer_paused: consumer(
    'gauge',
    '1 while the consumer is paused, by an operator or by its breaker, by the database.',
  ),
  waybill_consumer_collected_timestamp_seconds: consumer(
    'gauge',
    'When the metrics by the database were read last, seconds since 1970.',
  ),
  waybill_consumer_breaker_open: consumer('gauge', '1 while the breaker is open: the handler fails for every message.'),

  waybill_build_info: {
    type: 'gauge',
    labels: ['version'],
    help: 'Always 1; the version of the program.',
    of: 'process',
  },
  waybill_event_loop_lag_seconds: {
    type: 'gauge',
    labels: [],
    help: 'Longest delay of the event loop in the last seconds.',
    of: 'process',
  },
  process_cpu_seconds_total: { type: 'counter', labels: [], help: 'CPU time used.', of: 'process' },
  process_resident_memory_bytes: { type: 'gauge', labels: [], help: 'Resident memory.', of: 'process' },
  process_open_fds: {
    type: 'gauge',
    labels: [],
    help: 'Open file descriptors; absent where /proc is not there.',
    of: 'process',
  },
  process_start_time_seconds: {
    type: 'gauge',
    labels: [],
    help: 'Start of the process, seconds since 1970.',
    of: 'process',
  },
} as const satisfies Record<string, MetricDefinition>;

export type MetricName = keyof typeof METRICS;

/** The labels of one metric, each with its value. */
export type LabelsOf<N extends MetricName> = Readonly<Record<(typeof METRICS)[N]['labels'][number], string>>;

type NamesOf<T extends MetricDefinition['type']> = {
  [N in MetricName]: (typeof METRICS)[N]['type'] extends T ? N : never;
}[MetricName];

/** Gauges that have no other label than the relay. */
export type RelayGaugeName = {
  [N in GaugeName]: (typeof METRICS)[N]['labels'] extends readonly ['relay'] ? N : never;
}[GaugeName];

export type CounterName = NamesOf<'counter'>;
export type GaugeName = NamesOf<'gauge'>;
export type HistogramName = NamesOf<'histogram'>;
