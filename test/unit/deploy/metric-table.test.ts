import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { withMetricTable } from '../../../deploy/metric-table.js';

const readme = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8');

it("the README's metrics are those of src/telemetry/metrics.ts; refresh them with `npm run generate`", () => {
  expect(withMetricTable(readme)).toBe(readme);
});

it('a README without the marks is refused', () => {
  expect(() => withMetricTable('# Waybill\n')).toThrow('README.md needs the lines');
});
