import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parser } from '@prometheus-io/lezer-promql';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { grafanaDashboard } from '../../../deploy/grafana-dashboard.js';
import { METRICS, type MetricDefinition } from '../../../src/telemetry/metrics.js';

/** Of Debian's package prometheus. Optional, so its absence is no failure; of what it would have shown nothing was tried. */
const hasPromtool = spawnSync('promtool', ['--version']).error === undefined;
const RULES = new URL('../../../deploy/prometheus/waybill.rules.yaml', import.meta.url);
const DASHBOARD = new URL('../../../deploy/grafana/waybill.json', import.meta.url);

interface Rule {
  record?: string;
  alert?: string;
  expr: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
}

const rules = (parse(readFileSync(RULES, 'utf8')) as { groups: { rules: Rule[] }[] }).groups.flatMap(
  (group) => group.rules,
);
const recorded = new Set(rules.flatMap(({ record }) => record ?? []));
const dashboard = JSON.parse(readFileSync(DASHBOARD, 'utf8')) as {
  panels: { title: string; targets?: { expr: string; legendFormat: string }[] }[];
  templating: { list: { query: string }[] };
};
const shown = dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));

/** Labels that the scraper adds, and the one of histograms. */
const COMMON_LABELS = new Set(['instance', 'job', 'le']);

/** The name of the metric that a series belongs to; the parts of a histogram belong to it. */
function familyOf(name: string): MetricDefinition | undefined {
  const table: Readonly<Record<string, MetricDefinition>> = METRICS;
  const histogram = table[name.replace(/_(bucket|sum|count)$/, '')];
  return table[name] ?? (histogram?.type === 'histogram' ? histogram : undefined);
}

/** What one expression names. Throws where Prometheus' own grammar finds an error. */
function namesIn(query: string): { metrics: string[]; labels: string[] } {
  // Grafana puts an interval and a choice there.
  const expr = query.replaceAll('$__rate_interval', '5m').replaceAll(/\$(relay|consumer)/g, 'x');
  const metrics: string[] = [];
  const labels: string[] = [];
  parser.parse(expr).iterate({
    enter(node) {
      const text = expr.slice(node.from, node.to);
      if (node.type.isError) throw new Error(`no PromQL at "${expr.slice(node.from, node.from + 30)}" of ${expr}`);
      if (node.name === 'Identifier') metrics.push(text);
      if (node.name === 'LabelName') labels.push(text);
    },
  });
  return { metrics, labels };
}

describe('rules and dashboard', () => {
  it.each([...rules.map(({ expr }) => expr), ...shown])('names only metrics and labels that there are: %s', (expr) => {
    const { metrics, labels } = namesIn(expr);
    expect(metrics.length).toBeGreaterThan(0);
    for (const name of metrics)
      expect([name, recorded.has(name) || familyOf(name) !== undefined]).toEqual([name, true]);
    const known = new Set([
      ...COMMON_LABELS,
      ...metrics.flatMap((name) => [...(familyOf(name)?.labels ?? ['relay', 'consumer'])]),
    ]);
    for (const label of labels) expect([label, known.has(label)]).toEqual([label, true]);
  });

  it('counters are only looked at by their growth, histograms by quantiles', () => {
    for (const expr of [...rules.map((rule) => rule.expr), ...shown]) {
      for (const [, before = '', name = ''] of expr.matchAll(
        /(\w+)?\(?\b(waybill_\w+(?:_total|_bucket)|process_\w+_total)\b/g,
      )) {
        expect([expr, name, ['rate', 'increase'].includes(before)]).toEqual([expr, name, true]);
      }
    }
  });

  it('a name that is no metric, a label that it does not have, and what is no PromQL are found', () => {
    expect(namesIn('rate(waybill_outbox_lost_total[5m])').metrics.map(familyOf)).toEqual([undefined]);
    expect(namesIn('sum by (queue) (waybill_outbox_held{state="parked"})').labels).toEqual(['queue', 'state']);
    expect(() => namesIn('sum by (relay (waybill_outbox_held)')).toThrow('no PromQL');
  });

  it('every alert says how grave it is and what to do next', () => {
    for (const { alert, labels, annotations } of rules) {
      if (alert === undefined) continue;
      expect(labels?.['severity']).toMatch(/^(critical|warning|info)$/);
      expect(annotations?.['summary']).toMatch(/\.$/);
      expect(annotations?.['description']).toMatch(/\.$/);
    }
    const names = rules.flatMap(({ alert, record }) => alert ?? record ?? []);
    expect(new Set(names).size).toBe(names.length);
  });

  it('deploy/grafana/waybill.json is what deploy/grafana-dashboard.ts says; refresh it with `npm run generate`', () => {
    expect(readFileSync(DASHBOARD, 'utf8')).toBe(grafanaDashboard());
  });

  it.skipIf(!hasPromtool)(
    "Prometheus' own tool takes the rules, and they say what they should of invented series",
    () => {
      execFileSync('promtool', ['check', 'rules', fileURLToPath(RULES)], { stdio: 'pipe' });
      const tests = fileURLToPath(new URL('alerts.yaml', import.meta.url));
      expect(execFileSync('promtool', ['test', 'rules', tests], { encoding: 'utf8', stdio: 'pipe' })).toContain(
        'SUCCESS',
      );
    },
  );
});
