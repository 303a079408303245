import { execFileSync } from 'node:child_process';
import { appendFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { CliContext } from '../../src/cli/context.js';
import { runCli } from '../../src/cli/program.js';
import { keys, keysFor, type Key } from '../../src/config/keys.js';
import type { ConfigSources } from '../../src/config/load.js';
import { receiverScene, type ReceiverScene } from '../support/receiver-scene.js';
import { until } from '../support/waiting.js';
import { leavesOf, readPaths, watched } from '../support/watched-config.js';

// The program itself runs here, so that it can be seen what it reads.
type Load = typeof import('../../src/config/load.js');
vi.mock('../../src/config/load.js', async (importOriginal) => {
  const original = await importOriginal<Load>();
  return { ...original, loadConfig: (sources: ConfigSources) => watched(original.loadConfig(sources)) };
});
const { loadConfig } = await vi.importActual<Load>('../../src/config/load.js');

const NAMES = ['stored', 'called', 'posted', 'ordered'];
const CONSUMERS = `
consumers:
  stored: {}
  called: { handler: { kind: sql, function: public.on_event } }
  posted: { handler: { kind: http, url: "https://127.0.0.1:1/", tls: { caFile: FILE, certFile: FILE, keyFile: FILE } } }
  ordered: { order: key }
`;

let scene: ReceiverScene;
let folder: string;
let file: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'waybill-keys-'));
  // One file for certificate, authority and key.
  file = join(folder, 'own.pem');
  const made = ['-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=own', '-keyout', file, '-out', `${file}.crt`];
  execFileSync('openssl', ['req', ...made], { stdio: 'pipe' });
  appendFileSync(file, readFileSync(`${file}.crt`));
  scene = await receiverScene();
  await scene.database.query(
    `create function public.on_event(waybill.inbox_message) returns void language plpgsql as $$ begin raise 'not this one'; end $$`,
  );
});
afterAll(async () => {
  await scene.drop();
  rmSync(folder, { recursive: true, force: true });
});

const configText = (): string => CONSUMERS.replaceAll('FILE', file);

/** Runs the program in this process until `work` is done. */
async function running(
  environment: Record<string, string>,
  work: (log: () => string) => Promise<unknown>,
): Promise<number> {
  let out = '';
  let stop: (name: NodeJS.Signals) => void = () => undefined;
  const context: CliContext = {
    environment: {
      WAYBILL_DATABASE_URL: scene.database.url,
      WAYBILL_BROKER_URL: scene.vhost.url,
      WAYBILL_ADMIN_LISTEN: '127.0.0.1:0',
      WAYBILL_CONFIG: 'waybill.yaml',
      ...environment,
    },
    readFile: () => configText(),
    exists: () => true,
    writeNew: () => undefined,
    out: (text) => (out += text),
    err: (text) => (out += text),
    outIsTerminal: false,
    ask: undefined,
    onSignal: (listener) => (stop = listener),
  };
  const ended = runCli(['run'], '1.2.3', context);
  try {
    await work(() => out);
  } finally {
    stop('SIGTERM');
  }
  return ended;
}

/** Whether it was read, or the whole of which it would be a part, where that was not given. */
const isRead = (path: string) => (): boolean =>
  path.split('.').some((_, index, parts) => readPaths.has(parts.slice(0, index + 1).join('.')));

/** What may be written for a key, in the hope that one of it is valid and is not what holds without it. */
function othersFor({ kind, values, default: fallback }: Key): string[] {
  switch (kind) {
    case 'flag':
    case 'choice':
      return values.split(', ').filter((value) => value !== fallback);
    case 'integer':
    case 'duration':
    case 'size':
      return values.split(' to ').filter((value) => value !== fallback);
    case 'url':
      return ['postgres://u@localhost/other', 'amqps://localhost/other', 'https://127.0.0.1:2/'];
    case 'file':
      return ['/another/file'];
    case 'command':
      return ['["another"]'];
    case 'rate':
      return ['7/s'];
    case 'list':
      return ['["5s"]', '["order.paid"]', '["10.1.0.0/16"]', '[{"exchange": "e"}]'];
    default:
      return ['another', 'hash', 'fanout', '{key}', 'public.another', '127.0.0.1:9', 'off'];
  }
}

/** The values of the loaded configuration that each key decides, as loading shows it. */
function decidedBy(): Map<string, Set<string>> {
  const environment = { WAYBILL_DATABASE_URL: 'postgres://u@localhost/d', WAYBILL_BROKER_URL: 'amqps://localhost' };
  const cert = { CERT_FILE: file, KEY_FILE: file };
  const given = Object.fromEntries(
    ['DATABASE', 'BROKER'].flatMap((part) =>
      Object.entries(cert).map(([name, value]) => [`WAYBILL_${part}_TLS_${name}`, value]),
    ),
  );
  const load = (change: Record<string, string>): Map<string, string> =>
    leavesOf(
      loadConfig({
        file: { name: 'waybill.yaml', text: configText() },
        environment: { ...environment, ...given, ...change },
        readFile: () => '',
      }),
    );
  const before = load({});
  const decided = new Map(keys.map(({ name }) => [name, new Set<string>()]));
  for (const key of keysFor(NAMES)) {
    const general = key.path[0] === 'consumers' ? ['consumers', '<name>', ...key.path.slice(2)].join('.') : key.name;
    for (const value of othersFor(key)) {
      let after: Map<string, string>;
      try {
        after = load({ [key.environmentName]: value });
      } catch {
        continue;
      }
      for (const path of [...before.keys(), ...after.keys()]) {
        if (before.get(path) !== after.get(path)) decided.get(general)?.add(path);
      }
    }
  }
  // It cannot be changed without the key that then is required: another consumer shows it.
  for (const path of before.keys()) {
    if (/^consumers\.\d+\.handler\.kind$/.test(path)) decided.get('consumers.<name>.handler.kind')?.add(path);
  }
  return decided;
}

test(
  'every key of the configuration decides something, and what it decides is read',
  { timeout: 120_000 },
  async () => {
    const decided = decidedBy();
    expect([...decided].filter(([, paths]) => paths.size === 0).map(([name]) => name)).toEqual([]);

    readPaths.clear();
    const everything = await running(
      { WAYBILL_RETENTION_INTERVAL: '100ms', WAYBILL_RELAY_ON_UNROUTABLE_RETRY_FOR: '0s' },
      async (log) => {
        await until(() => log().includes('"streaming"'), { what: 'the relay to stream', withinMs: 30_000 });
        await until(() => log().split('"msg":"consuming"').length > NAMES.length, {
          what: 'all to consume',
          withinMs: 30_000,
        });
        for (const name of NAMES) await scene.send(name, [{ messageId: name, key: 'k' }]);
        await scene.waitForRows(2, "status = 'waiting'");
        await until(isRead('retention.actionsMs'), { what: 'the cleaner to go round' });
        // Nobody listens; some of it is on its way when the relay looks whether it stalls.
        await until(
          async () => {
            await scene.database.query(`select waybill.publish('t', '{}') from generate_series(1, 500)`);
            return readPaths.has('relay.stallTimeoutMs');
          },
          { what: 'the relay to look whether it stalls', withinMs: 30_000, everyMs: 200 },
        );
        await until(isRead('relay.onUnroutable.then'), { what: 'what no queue takes to be parked' });
      },
    );
    expect(everything).toBe(0);
    // Encrypted connections that do not come about, but are tried.
    const cut = { TLS_CA_FILE: file, TLS_CERT_FILE: file, TLS_KEY_FILE: file };
    const tls = (part: string) =>
      Object.fromEntries(Object.entries(cut).map(([name, value]) => [`WAYBILL_${part}_${name}`, value]));
    await running({ ...tls('DATABASE'), WAYBILL_DATABASE_TLS_MODE: 'verify-full' }, () =>
      until(isRead('database.tls.keyFile'), { what: 'the files of the database to be read' }),
    );
    await running({ ...tls('BROKER'), WAYBILL_BROKER_URL: 'amqps://127.0.0.1:1/' }, async () => {
      await until(isRead('broker.tls.keyFile'), { what: 'the files of the broker to be read' });
      // It looks every 10 s, and compares two looks.
      const what = 'what the slot keeps to be looked at while the broker is away';
      await until(isRead('relay.maxKeptWalBytes'), { what, withinMs: 60_000 });
    });
    const unread = [...decided].filter(([, paths]) => ![...paths].some((path) => isRead(path)()));
    expect(unread.map(([name]) => name)).toEqual([]);
  },
);
