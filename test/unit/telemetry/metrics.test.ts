import parsePrometheus from 'parse-prometheus-text-format';
import { describe, expect, it } from 'vitest';
import { LABEL_VALUES, METRICS, type MetricDefinition } from '../../../src/telemetry/metrics.js';
import { Metrics } from '../../../src/telemetry/metrics-registry.js';

const CONFIGURED = { relay: ['orders'], consumer: ['billing', 'emails'], version: ['1.0.0'] };
const EVERYTHING = new Set(['relay', 'consumers', 'process'] as const);

const table = Object.entries<MetricDefinition>(METRICS);

describe('the table of metrics', () => {
  it('names carry their unit and type as Prometheus wants them', () => {
    for (const [name, { type, help, buckets }] of table) {
      expect(name).toMatch(/^(waybill|process)_[a-z_]+$/);
      expect([name, name.endsWith('_total')]).toEqual([name, type === 'counter']);
      if (type === 'histogram') expect(name).toMatch(/_(seconds|bytes)$/);
      expect(name).not.toMatch(/_(ms|milliseconds|mib|kb|percent)(_|$)/);
      expect(help).toMatch(/^[A-Z0-9r].*\.$/);
      expect(help).not.toContain('\n');
      expect([name, buckets === undefined]).toEqual([name, type !== 'histogram']);
    }
  });

  it('F120: labels say what is configured or listed, so their number is known beforehand', () => {
    for (const [name, { labels }] of table) {
      const series = labels
        .map((label) => LABEL_VALUES[label])
        .reduce((product, values) => product * (values === 'configuration' ? 1 : values.length), 1);
      expect([name, series <= 10]).toEqual([name, true]);
    }
  });
});

describe('the registry', () => {
  it('shows every metric of its parts to a parser of the format, and no other', async () => {
    const metrics = new Metrics(CONFIGURED, EVERYTHING);
    const families = parsePrometheus(await metrics.show());
    expect(families.map(({ name, type, help }) => ({ name, type, help }))).toEqual(
      table.map(([name, { type, help }]) => ({ name, type: type.toUpperCase(), help })),
    );
    const relayOnly = new Metrics(CONFIGURED, new Set(['relay'] as const));
    expect(parsePrometheus(await relayOnly.show()).map(({ name }) => name)).toEqual(
      table.filter(([, { of }]) => of === 'relay').map(([name]) => name),
    );
    expect(() => relayOnly.add('waybill_inbox_received_total', { consumer: 'billing' })).toThrow('does not run');
  });

  it('F120: a label value that nobody configured is a programming error, not another series', async () => {
    const metrics = new Metrics(CONFIGURED, EVERYTHING);
    expect(() => metrics.add('waybill_inbox_dead_total', { consumer: 'order-4711' })).toThrow('may not be order-4711');
    expect(() => metrics.set('waybill_outbox_held', { relay: 'orders', state: 'lost' }, 1)).toThrow('may not be lost');
    expect(await metrics.show()).not.toContain('4711');
  });

  it('counts, takes totals over, and leaves out what is not known', async () => {
    const metrics = new Metrics(CONFIGURED, EVERYTHING);
    metrics.add('waybill_inbox_received_total', { consumer: 'billing' }, 3);
    metrics.add('waybill_inbox_received_total', { consumer: 'billing' });
    let published = 5;
    metrics.beforeShowing(() => metrics.total('waybill_outbox_published_total', { relay: 'orders' }, published));
    metrics.set('waybill_slot_lag_bytes', { relay: 'orders' }, 42);
    metrics.observer('waybill_outbox_commit_to_confirm_seconds', { relay: 'orders' })(0.02);
    let shown = await metrics.show();
    expect(shown).toContain('waybill_inbox_received_total{consumer="billing"} 4');
    expect(shown).toContain('waybill_outbox_published_total{relay="orders"} 5');
    expect(shown).toContain('waybill_slot_lag_bytes{relay="orders"} 42');
    expect(shown).toContain('waybill_outbox_commit_to_confirm_seconds_bucket{le="0.025",relay="orders"} 1');
    expect(shown).toContain('waybill_outbox_commit_to_confirm_seconds_bucket{le="0.01",relay="orders"} 0');
    published = 9;
    metrics.set('waybill_slot_lag_bytes', { relay: 'orders' }, undefined);
    shown = await metrics.show();
    expect(shown).toContain('waybill_outbox_published_total{relay="orders"} 9');
    expect(shown).not.toContain('waybill_slot_lag_bytes{');
  });
});
