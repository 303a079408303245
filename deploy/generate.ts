// `npm run generate`: makes anew what is made from the sources: the README's error codes and metrics, and the
// configuration reference.
// (sql/schema.sql needs a server: test/integration/schema-drift.test.ts says how it is made.)
import { readFileSync, writeFileSync } from 'node:fs';
import { configReference } from '../src/config/reference.js';
import { grafanaDashboard } from './grafana-dashboard.js';
import { withErrorTable } from './error-table.js';
import { withMetricTable } from './metric-table.js';

const readme = new URL('../README.md', import.meta.url);
writeFileSync(readme, withMetricTable(withErrorTable(readFileSync(readme, 'utf8'))));
writeFileSync(new URL('./configuration.md', import.meta.url), configReference());
writeFileSync(new URL('./grafana/waybill.json', import.meta.url), grafanaDashboard());
