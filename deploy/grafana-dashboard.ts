interface Query {
  expr: string;
  legend: string;
}

interface Panel {
  title: string;
  /** Grafana's name of the unit. */
  unit: string;
  queries: readonly Query[];
  /** In 24ths of the width. */
  width?: number;
  type?: 'timeseries' | 'stat';
}

interface Row {
  title: string;
  panels: readonly Panel[];
}

const rate = (metric: string, by: string) => `sum by (${by}) (rate(${metric}{${by}=~"$${by}"}[$__rate_interval]))`;
const most = (metric: string, by = 'relay') => `max by (${by}) (${metric}{relay=~"$relay"})`;
const quantile = (q: number, metric: string, by: string) =>
  `histogram_quantile(${q}, sum by (${by}, le) (rate(${metric}_bucket{${by}=~"$${by}"}[$__rate_interval])))`;

/** Rows and panels: first what tells whether all is well, then why not. */
const ROWS: readonly Row[] = [
  {
    title: 'Outbox: is it well?',
    panels: [
      stat('Active relays', 'none', 'sum by (relay) (waybill_relay_active{relay=~"$relay"})'),
      stat('Ready', 'none', 'min by (relay) (waybill_relay_ready{relay=~"$relay"})'),
      stat('Pending', 'short', most('waybill_outbox_pending')),
      stat('Oldest pending', 's', most('waybill_outbox_oldest_pending_seconds')),
      stat('Parked', 'short', 'max by (relay) (waybill_outbox_held{relay=~"$relay",state="parked"})'),
      stat('Broker blocked', 'none', most('waybill_broker_blocked')),
    ],
  },
  {
    title: 'Outbox: flow',
    panels: [
      {
        title: 'Messages a second',
        unit: 'cps',
        queries: [
          { expr: rate('waybill_outbox_published_total', 'relay'), legend: '{{relay}} published' },
          { expr: rate('waybill_outbox_confirmed_total', 'relay'), legend: '{{relay}} confirmed' },
          { expr: rate('waybill_outbox_settled_total', 'relay'), legend: '{{relay}} settled' },
        ],
      },
      {
        title: 'From commit to confirm',
        unit: 's',
        queries: [0.5, 0.95, 0.99].map((q) => ({
          expr: quantile(q, 'waybill_outbox_commit_to_confirm_seconds', 'relay'),
          legend: `{{relay}} ${q * 100} %`,
        })),
      },
      {
        title: 'In flight',
        unit: 'short',
        queries: [
          { expr: most('waybill_outbox_in_flight'), legend: '{{relay}} in flight' },
          { expr: most('waybill_outbox_unsettled'), legend: '{{relay}} unsettled' },
          { expr: most('waybill_outbox_in_flight_limit'), legend: '{{relay}} limit' },
        ],
      },
    ],
  },
  {
    title: 'Outbox: trouble',
    panels: [
      {
        title: 'Returned, nacked, resent, set aside a second',
        unit: 'cps',
        queries: ['returned', 'nacked', 'resent', 'scheduled', 'parked', 'blocked', 'accepted', 'expired'].map(
          (what) => ({
            expr: rate(`waybill_outbox_${what}_total`, 'relay'),
            legend: `{{relay}} ${what}`,
          }),
        ),
      },
      {
        title: 'Held rows',
        unit: 'short',
        queries: [{ expr: most('waybill_outbox_held', 'relay, state'), legend: '{{relay}} {{state}}' }],
      },
      {
        title: 'Published from the table, by pass and by sweep',
        unit: 'short',
        queries: ['rebuilt', 'swept', 'skipped', 'gone'].map((what) => ({
          expr: `sum by (relay) (increase(waybill_outbox_${what}_total{relay=~"$relay"}[$__rate_interval]))`,
          legend: `{{relay}} ${what}`,
        })),
      },
    ],
  },
  {
    title: 'PostgreSQL',
    panels: [
      {
        title: 'Write-ahead log',
        unit: 'bytes',
        queries: [
          { expr: most('waybill_slot_lag_bytes'), legend: '{{relay}} not confirmed' },
          { expr: most('waybill_slot_kept_wal_bytes'), legend: '{{relay}} kept' },
          { expr: 'min by (relay) (waybill_slot_safe_wal_bytes{relay=~"$relay"})', legend: '{{relay}} until lost' },
        ],
      },
      {
        title: 'Size of the outbox',
        unit: 'bytes',
        queries: [{ expr: most('waybill_outbox_table_bytes'), legend: '{{relay}}' }],
      },
      {
        title: 'Since the last checkpoint, and since the database was read',
        unit: 's',
        queries: [
          { expr: 'min by (relay) (waybill_checkpoint_age_seconds{relay=~"$relay"})', legend: '{{relay}} checkpoint' },
          { expr: `time() - ${most('waybill_collected_timestamp_seconds')}`, legend: '{{relay}} read' },
        ],
      },
    ],
  },
  {
    title: 'Inbox',
    panels: [
      {
        title: 'Messages a second',
        unit: 'cps',
        queries: ['received', 'applied', 'duplicate'].map((what) => ({
          expr: rate(`waybill_inbox_${what}_total`, 'consumer'),
          legend: `{{consumer}} ${what}`,
        })),
      },
      {
        title: 'Retried, deferred, abandoned, dead, in conflict a second',
        unit: 'cps',
        queries: [
          ...['retried', 'deferred', 'dead', 'conflict'].map((what) => ({
            expr: rate(`waybill_inbox_${what}_total`, 'consumer'),
            legend: `{{consumer}} ${what}`,
          })),
          {
            // Counted by the database: the same in every process.
            expr: 'max by (consumer) (rate(waybill_inbox_abandoned_total{consumer=~"$consumer"}[$__rate_interval]))',
            legend: '{{consumer}} abandoned',
          },
        ],
      },
      {
        title: 'Handler',
        unit: 's',
        queries: [0.5, 0.99].map((q) => ({
          expr: quantile(q, 'waybill_inbox_handler_seconds', 'consumer'),
          legend: `{{consumer}} ${q * 100} %`,
        })),
      },
      {
        title: 'Waiting in the queue',
        unit: 'short',
        queries: [
          { expr: 'max by (consumer) (waybill_consumer_lag_messages{consumer=~"$consumer"})', legend: '{{consumer}}' },
        ],
      },
      {
        title: 'Oldest that is not applied',
        unit: 's',
        queries: [
          {
            expr: 'max by (consumer) (waybill_inbox_oldest_pending_seconds{consumer=~"$consumer"})',
            legend: '{{consumer}}',
          },
        ],
      },
      {
        title: 'By status; processes that consume; paused; breaker open',
        unit: 'short',
        queries: [
          {
            expr: 'max by (consumer, status) (waybill_inbox_rows{consumer=~"$consumer"})',
            legend: '{{consumer}} {{status}}',
          },
          {
            expr: 'max by (consumer) (waybill_inbox_copies_waiting{consumer=~"$consumer"})',
            legend: '{{consumer}} without copy',
          },
          {
            expr: 'sum by (consumer) (waybill_consumer_consuming{consumer=~"$consumer"})',
            legend: '{{consumer}} consuming',
          },
          { expr: 'max by (consumer) (waybill_consumer_paused{consumer=~"$consumer"})', legend: '{{consumer}} paused' },
          {
            expr: 'max by (consumer) (waybill_consumer_breaker_open{consumer=~"$consumer"})',
            legend: '{{consumer}} breaker open',
          },
        ],
      },
    ],
  },
  {
    title: 'Process',
    panels: [
      {
        title: 'Memory',
        unit: 'bytes',
        queries: [
          { expr: 'process_resident_memory_bytes and on (instance) waybill_build_info', legend: '{{instance}}' },
        ],
      },
      {
        title: 'CPU',
        unit: 'percentunit',
        queries: [
          {
            expr: 'rate(process_cpu_seconds_total[$__rate_interval]) and on (instance) waybill_build_info',
            legend: '{{instance}}',
          },
        ],
      },
      {
        title: 'Longest delay of the event loop',
        unit: 's',
        queries: [{ expr: 'waybill_event_loop_lag_seconds', legend: '{{instance}}' }],
      },
    ],
  },
];

function stat(title: string, unit: string, expr: string): Panel {
  return { title, unit, queries: [{ expr, legend: '{{relay}}' }], width: 4, type: 'stat' };
}

const HEIGHT = { row: 1, stat: 4, timeseries: 8 } as const;

/** The dashboard as Grafana imports it; deploy/grafana/waybill.json holds it, and a test compares the two. */
export function grafanaDashboard(): string {
  const panels: object[] = [];
  let y = 0;
  for (const { title, panels: inRow } of ROWS) {
    panels.push({ type: 'row', title, id: panels.length + 1, gridPos: { x: 0, y, w: 24, h: HEIGHT.row }, panels: [] });
    y += HEIGHT.row;
    let x = 0;
    for (const { type = 'timeseries', width = 8, unit, queries, title: name } of inRow) {
      if (x + width > 24) {
        x = 0;
        y += HEIGHT[type];
      }
      panels.push({
        type,
        title: name,
        id: panels.length + 1,
        gridPos: { x, y, w: width, h: HEIGHT[type] },
        datasource: { type: 'prometheus', uid: '${datasource}' },
        fieldConfig: { defaults: { unit, min: 0 }, overrides: [] },
        targets: queries.map(({ expr, legend }, index) => ({
          refId: String.fromCharCode(65 + index),
          expr,
          legendFormat: legend,
        })),
      });
      x += width;
    }
    y += HEIGHT[inRow[0]?.type ?? 'timeseries'];
  }
  const choice = (name: string, metric: string) => ({
    name,
    type: 'query',
    datasource: { type: 'prometheus', uid: '${datasource}' },
    query: `label_values(${metric}, ${name})`,
    includeAll: true,
    multi: true,
    current: { text: 'All', value: '$__all' },
    refresh: 2,
  });
  const dashboard = {
    title: 'Waybill',
    uid: 'waybill',
    tags: ['waybill'],
    schemaVersion: 39,
    timezone: 'browser',
    refresh: '30s',
    time: { from: 'now-3h', to: 'now' },
    templating: {
      list: [
        { name: 'datasource', type: 'datasource', query: 'prometheus' },
        choice('relay', 'waybill_relay_active'),
        choice('consumer', 'waybill_inbox_received_total'),
      ],
    },
    panels,
  };
  return `${JSON.stringify(dashboard, null, 2)}\n`;
}
