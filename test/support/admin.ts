import { request } from 'node:http';
import parsePrometheus from 'parse-prometheus-text-format';
import type { Readiness } from '../../src/admin/health.js';
import type { RelayProcess } from './relay.js';

/** Let a relay of a test serve its admin HTTP on a free port. */
export const ADMIN_ON = { WAYBILL_ADMIN_LISTEN: '127.0.0.1:0' };

/** One answer of the admin HTTP server. */
export interface AdminAnswer {
  status: number;
  headers: Readonly<Record<string, string | string[] | undefined>>;
  body: string;
}

/** The admin HTTP of a relay under test. */
export interface Admin {
  readonly port: number;
  get(
    path: string,
    options?: { headers?: Record<string, string>; method?: string; body?: string },
  ): Promise<AdminAnswer>;
  ready(): Promise<Readiness & { status: number }>;
  /** The value of a metric, of a histogram how many values it holds; undefined when it is absent. */
  metric(name: string, labels?: Record<string, string>): Promise<number | undefined>;
}

/** Waits until the relay says where its admin HTTP listens. */
export async function adminOf(relay: RelayProcess): Promise<Admin> {
  const line = await relay.waitForLog(({ msg }) => msg === 'admin HTTP listens', 'the admin HTTP to listen');
  return adminAt(Number(line['port']));
}

/** The admin HTTP at a port of this machine. */
export function adminAt(port: number): Admin {
  const get: Admin['get'] = (path, { headers = {}, method = 'GET', body } = {}) =>
    new Promise((resolve, reject) => {
      const sending = request({ host: '127.0.0.1', port, path, method, headers, agent: false }, (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => (text += chunk));
        response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text }));
        response.on('error', reject);
      });
      sending.on('error', reject);
      sending.end(body);
    });
  return {
    port,
    get,
    async ready() {
      const { status, body } = await get('/readyz');
      return { ...(JSON.parse(body) as Readiness), status };
    },
    async metric(name, labels = {}) {
      const families = parsePrometheus((await get('/metrics')).body);
      const family = families.find((each) => each.name === name);
      const found = family?.metrics.find((each) =>
        Object.entries(labels).every(([label, value]) => each.labels?.[label] === value),
      );
      const value = found?.value ?? found?.buckets?.['+Inf'];
      return value === undefined ? undefined : Number(value);
    },
  };
}
