import { METRICS, type MetricDefinition } from '../src/telemetry/metrics.js';

const BEGIN = '<!-- metrics: begin, made by `npm run generate` -->';
const END = '<!-- metrics: end -->';

/** The README with its table of metrics made anew from src/telemetry/metrics.ts. */
export function withMetricTable(readme: string): string {
  const begin = readme.indexOf(BEGIN);
  const end = readme.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`README.md needs the lines ${BEGIN} and ${END}`);
  const rows = Object.entries<MetricDefinition>(METRICS).map(
    ([name, { type, labels, help }]) => `| \`${name}\` | ${type} | ${labels.join(', ')} | ${help} |`,
  );
  const table = ['| Metric | Type | Labels | Meaning |', '|---|---|---|---|', ...rows].join('\n');
  return `${readme.slice(0, begin)}${BEGIN}\n${table}\n${readme.slice(end)}`;
}
