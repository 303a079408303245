import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { loadConfig } from '../../../src/config/load.js';

const read = (path: string): string => readFileSync(new URL(`../../../deploy/${path}`, import.meta.url), 'utf8');

/** What the secret files of the manifests would hold. */
const SECRETS: Readonly<Record<string, string>> = {
  'database-url': 'postgres://u:p@db.example.com/orders',
  'broker-url': 'amqps://u:p@mq.example.com/orders',
};
const readFile = (path: string): string => {
  const secret = SECRETS[path.split('/').at(-1) ?? ''];
  if (secret === undefined) throw new Error(`no such secret: ${path}`);
  return secret;
};

interface Container {
  args: string[];
  env: { name: string; value: string }[];
  ports: { name: string; containerPort: number }[];
  startupProbe: { httpGet: { path: string; port: string } };
  livenessProbe: { httpGet: { path: string; port: string } };
  readinessProbe?: unknown;
  securityContext: Record<string, unknown>;
}
interface Deployment {
  spec: { template: { spec: { terminationGracePeriodSeconds: number; initContainers: Container[] } } };
}

describe('the manifests start a program that accepts its configuration', () => {
  test('kubernetes: a sidecar with start-up and liveness probes only, and time to drain', () => {
    const [document] = parseAllDocuments(read('kubernetes/sidecar.yaml'));
    const { spec } = (document?.toJS() as Deployment).spec.template;
    const waybill = spec.initContainers[0]!;
    const environment = Object.fromEntries(waybill.env.map(({ name, value }) => [name, value]));
    const config = loadConfig({ environment, readFile });
    expect(spec.terminationGracePeriodSeconds * 1000).toBeGreaterThan(config.relay.drainTimeoutMs + 5_000);
    expect(config.admin.listen).toEqual({ host: '0.0.0.0', port: waybill.ports[0]?.containerPort });
    expect([waybill.startupProbe, waybill.livenessProbe].map(({ httpGet }) => httpGet.path)).toEqual([
      '/livez',
      '/livez',
    ]);
    // Design 5: an outage of the broker never takes the application's pod down.
    expect(waybill.readinessProbe).toBeUndefined();
    expect(waybill.securityContext).toMatchObject({ readOnlyRootFilesystem: true, allowPrivilegeEscalation: false });
  });

  test('compose', () => {
    const { services } = parse(read('compose.yaml')) as {
      services: Record<string, { environment: Record<string, string>; stop_grace_period?: string }>;
    };
    for (const name of ['migrate', 'waybill']) {
      loadConfig({ environment: services[name]!.environment, readFile });
    }
    expect(services['waybill']?.stop_grace_period).toBe('30s');
  });

  test('systemd', () => {
    const lines = read('systemd/waybill.service').split('\n');
    const environment = Object.fromEntries(
      lines.flatMap((line) => {
        const [, name, value] = /^Environment=([A-Z_]+)=(.*)$/.exec(line) ?? [];
        return name === undefined ? [] : [[name, value?.replace('%d', '/run/credentials')]];
      }),
    ) as Record<string, string>;
    const config = loadConfig({ environment, readFile });
    const stop = Number(/^TimeoutStopSec=(\d+)$/m.exec(lines.join('\n'))?.[1]);
    expect(stop * 1000).toBeGreaterThan(config.relay.drainTimeoutMs + 5_000);
    // V8 writes code and runs it.
    expect(lines.some((line) => line.startsWith('MemoryDenyWriteExecute'))).toBe(false);
  });
});
