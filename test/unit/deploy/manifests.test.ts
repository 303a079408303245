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
  test('F112: kubernetes: a sidecar with start-up and liveness probes only, and time to drain', () => {
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
      services: Record<
        string,
        {
          environment: Record<string, string>;
          command?: string[];
          stop_grace_period?: string;
          healthcheck?: { test: string[] };
        }
      >;
    };
    for (const name of ['migrate', 'waybill']) {
      loadConfig({ environment: services[name]!.environment, readFile });
    }
    const config = loadConfig({ environment: services['waybill']!.environment, readFile });
    const graceMs = 1_000 * Number(/^(\d+)s$/.exec(services['waybill']?.stop_grace_period ?? '')?.[1]);
    expect(graceMs).toBeGreaterThan(config.relay.drainTimeoutMs + 5_000);
    // Every word of it must be text: a colon in a list of YAML makes a map.
    const probe = services['waybill']?.healthcheck?.test ?? [];
    expect(probe.map((word) => typeof word)).toEqual(['string', 'string', 'string', 'string']);
    expect(probe.at(-1)).toContain(`fetch('http://127.0.0.1:${config.admin.listen?.port}/readyz')`);
    // What doctor would fail in our own example.
    expect(services['postgres']?.command).toContain('max_slot_wal_keep_size=8GB');
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

describe('security: the manifests give the program no more than it needs', () => {
  test('kubernetes: no root, nothing written, no capabilities, no token of the cluster; the secret can be read', () => {
    const [document] = parseAllDocuments(read('kubernetes/sidecar.yaml'));
    const pod = (document?.toJS() as { spec: { template: { spec: Record<string, unknown> } } }).spec.template.spec;
    expect(pod).toMatchObject({
      automountServiceAccountToken: false,
      securityContext: {
        runAsNonRoot: true,
        runAsUser: 65532,
        fsGroup: 65532,
        seccompProfile: { type: 'RuntimeDefault' },
      },
      volumes: [{ secret: { defaultMode: 0o440 } }],
    });
    for (const { securityContext } of [
      ...(pod['initContainers'] as Container[]),
      ...(pod['containers'] as Container[]),
    ]) {
      expect(securityContext).toEqual({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      });
    }
  });

  test('the image: no shell, not root, no scripts of packages', () => {
    const image = read('Dockerfile');
    expect(image).toMatch(/^FROM gcr\.io\/distroless\/\S+:nonroot$/m);
    expect(image).toMatch(/^USER nonroot$/m);
    for (const [line] of image.matchAll(/.*npm (ci|prune).*/g)) expect(line).toContain('--ignore-scripts');
  });

  test('systemd: no rights, nothing written, secrets as credentials', () => {
    const unit = read('systemd/waybill.service');
    for (const line of [
      'DynamicUser=yes',
      'CapabilityBoundingSet=',
      'NoNewPrivileges=yes',
      'ProtectSystem=strict',
      'ProtectHome=yes',
      'PrivateDevices=yes',
      'RestrictNamespaces=yes',
      // Node calls pkey_alloc, which @system-service lacks; without an error number, what is not named kills the process.
      'SystemCallFilter=@system-service @pkey',
      'SystemCallErrorNumber=EPERM',
      'LoadCredential=database-url:/etc/waybill/database-url',
      'LoadCredential=broker-url:/etc/waybill/broker-url',
    ]) {
      expect(unit.split('\n')).toContain(line);
    }
    expect(unit).not.toMatch(/^Environment=\S*:\/\//m);
  });

  test('pg_hba.conf: encrypted from elsewhere, one database, never the keyword for physical replication', () => {
    const lines = read('postgres/pg_hba.conf')
      .split('\n')
      .filter((line) => /^[a-z]/.test(line))
      .map((line) => line.split(/ +/));
    expect(lines.length).toBeGreaterThan(3);
    for (const [type, database, , address, method] of lines) {
      expect(database).not.toMatch(/replication/);
      const isLocal = address === '127.0.0.1/32' || address === '::1/128';
      if (method !== 'reject' && !isLocal) expect(type).toBe('hostssl');
      expect(['scram-sha-256', 'reject']).toContain(method);
    }
    expect(lines.at(-1)).toEqual(['host', 'all', 'waybill_relay', 'all', 'reject']);
  });

  test('what is installed runs no scripts, neither ours nor those of packages that the program needs', () => {
    const root = (path: string): string => readFileSync(new URL(`../../../${path}`, import.meta.url), 'utf8');
    const { scripts } = JSON.parse(root('package.json')) as { scripts: Record<string, string> };
    const atInstall = ['preinstall', 'install', 'postinstall', 'prepare', 'preprepare', 'postprepare', 'prepublish'];
    expect(Object.keys(scripts).filter((name) => atInstall.includes(name))).toEqual([]);
    const { packages } = JSON.parse(root('package-lock.json')) as {
      packages: Record<string, { hasInstallScript?: boolean; dev?: boolean; integrity?: string; link?: boolean }>;
    };
    for (const [path, { hasInstallScript, dev, integrity }] of Object.entries(packages)) {
      if (path === '') continue;
      if (!dev) expect([path, hasInstallScript ?? false]).toEqual([path, false]);
      expect([path, integrity?.startsWith('sha512-')]).toEqual([path, true]);
    }
  });
});
