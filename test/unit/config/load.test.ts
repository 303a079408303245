import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { keysFor } from '../../../src/config/keys.js';
import {
  loadConfig,
  loadDatabaseConfig,
  loadSchemaName,
  secretsOf,
  type ConfigSources,
} from '../../../src/config/load.js';
import { ConfigInvalid } from '../../../src/config/problems.js';

const URLS = {
  WAYBILL_DATABASE_URL: 'postgres://waybill:s3cret-db@localhost:5432/shop',
  WAYBILL_BROKER_URL: 'amqp://waybill:s3cret-mq@127.0.0.1/',
};
const URLS_BROKER = { WAYBILL_BROKER_URL: URLS.WAYBILL_BROKER_URL };

function sources(text?: string, environment: Record<string, string> = URLS, files: Record<string, string> = {}) {
  return {
    file: text === undefined ? undefined : { name: 'waybill.yaml', text },
    environment,
    readFile: (path: string) => {
      const content = files[path];
      if (content === undefined) throw Object.assign(new Error(`no ${path}`), { code: 'ENOENT' });
      return content;
    },
  } satisfies ConfigSources;
}

function problemsOf(...given: Parameters<typeof sources>) {
  try {
    loadConfig(sources(...given));
  } catch (error) {
    if (error instanceof ConfigInvalid) return error.problems;
    throw error;
  }
  throw new Error('the configuration was accepted');
}

describe('a valid configuration', () => {
  it('needs no more than two URLs in the environment', () => {
    const config = loadConfig(sources());
    expect(config.database).toEqual({
      url: URLS.WAYBILL_DATABASE_URL,
      replicationUrl: URLS.WAYBILL_DATABASE_URL,
      schema: 'waybill',
      tls: { mode: 'insecure-plaintext' },
      replicationTls: { mode: 'insecure-plaintext' },
    });
    expect(config.relay).toMatchObject({
      name: 'default',
      source: 'wal',
      exchange: 'waybill.events',
      exchangeType: 'topic',
      topology: 'assert',
      routingKey: '{type}',
      ordering: 'pipelined',
      onUnroutable: { retryForMs: 600_000, then: 'park' },
      history: 'trace',
      historyRetentionMs: 7 * 86_400_000,
      maxInFlight: 2000,
      maxInFlightBytes: 64 * 2 ** 20,
      checkpointIntervalMs: 200,
      sweepIntervalMs: 300_000,
      maxKeptWalBytes: 4 * 2 ** 30,
      stallTimeoutMs: 30_000,
      confirmTimeoutMs: 30_000,
      drainTimeoutMs: 25_000,
      maxBodyBytes: 15 * 2 ** 20,
    });
    expect(config.broker).toMatchObject({ heartbeatMs: 10_000, connectTimeoutMs: 10_000 });
    expect(config.log).toEqual({ level: 'info', format: 'auto', messages: 'problems' });
  });

  it('is read from YAML, with empty sections', () => {
    const config = loadConfig(
      sources(
        'relay: { name: orders, onUnroutable: { retryFor: 1h, then: accept } }\nlog:\nbroker:\n  heartbeat: 20s\n',
      ),
    );
    expect(config.relay.name).toBe('orders');
    expect(config.relay.onUnroutable).toEqual({ retryForMs: 3_600_000, then: 'accept' });
    expect(config.broker.heartbeatMs).toBe(20_000);
  });

  it('is read from JSON', () => {
    expect(loadConfig(sources('{"relay": {"maxInFlight": 5, "maxKeptWal": "1GiB"}}')).relay).toMatchObject({
      maxInFlight: 5,
      maxKeptWalBytes: 2 ** 30,
    });
  });

  it('takes the environment before the file, and an empty variable as not set', () => {
    const environment = { ...URLS, WAYBILL_RELAY_MAX_IN_FLIGHT: '7', WAYBILL_RELAY_NAME: '' };
    const { relay } = loadConfig(sources('relay: { maxInFlight: 5, name: orders }', environment));
    expect(relay).toMatchObject({ maxInFlight: 7, name: 'orders' });
  });

  it('reads secrets from files, without the last line end', () => {
    const { WAYBILL_BROKER_URL } = URLS;
    const environment = {
      WAYBILL_BROKER_URL,
      WAYBILL_DATABASE_URL_FILE: '/run/db',
      WAYBILL_DATABASE_TLS_CA_FILE: '/ca',
    };
    const { database } = loadConfig(sources(undefined, environment, { '/run/db': `${URLS.WAYBILL_DATABASE_URL}\n` }));
    expect(database.url).toBe(URLS.WAYBILL_DATABASE_URL);
    // A key that itself ends in File is a path, not a value to be read.
    expect(database.tls.caFile).toBe('/ca');
  });

  it('ignores what Kubernetes sets for a Service called waybill, and what the tests use', () => {
    const links = {
      WAYBILL_SERVICE_HOST: '10.0.0.1',
      WAYBILL_SERVICE_PORT: '80',
      WAYBILL_SERVICE_PORT_HTTP: '80',
      WAYBILL_PORT: 'tcp://10.0.0.1:80',
      WAYBILL_PORT_80_TCP: 'tcp://10.0.0.1:80',
      WAYBILL_PORT_80_TCP_ADDR: '10.0.0.1',
      WAYBILL_ADMIN_SERVICE_HOST: '10.0.0.2',
      WAYBILL_TEST_DATABASE_URL: 'x',
      WAYBILL_CONFIG: 'waybill.yaml',
    };
    expect(() => loadConfig(sources(undefined, { ...URLS, ...links }))).not.toThrow();
  });

  it('takes every key by its environment variable', () => {
    for (const key of keysFor(['billing'])) {
      const kind = key.name.endsWith('handler.function') ? 'sql' : 'http';
      const value = key.kind === 'url' ? 'amqps://h/v' : key.kind === 'file' ? '/f' : (key.default ?? '');
      const environment = { ...URLS, [key.environmentName]: value };
      let problems: readonly { problem: string }[] = [];
      try {
        loadConfig(sources(`consumers: { billing: { handler: { kind: ${kind} } } }`, environment));
      } catch (error) {
        problems = (error as ConfigInvalid).problems;
      }
      expect(
        problems.filter(({ problem }) => problem.includes('no key')),
        key.name,
      ).toEqual([]);
    }
  });
});

describe('encryption', () => {
  const far = { WAYBILL_DATABASE_URL: 'postgres://u:p@db.example/shop', WAYBILL_BROKER_URL: 'amqps://u:p@mq.example/' };

  it('is verify-full off this machine', () => {
    const { database, broker } = loadConfig(sources(undefined, far));
    expect([database.tls.mode, database.replicationTls.mode, broker.tls.mode]).toEqual(Array(3).fill('verify-full'));
  });

  it('is decided for the replication URL by itself', () => {
    const { database } = loadConfig(sources('database: { replicationUrl: "postgres://u:p@db.example/shop" }'));
    expect([database.tls.mode, database.replicationTls.mode]).toEqual(['insecure-plaintext', 'verify-full']);
  });

  it('is not given up for a far broker without being asked', () => {
    const environment = { ...far, WAYBILL_BROKER_URL: 'amqp://u:p@mq.example/' };
    expect(problemsOf(undefined, environment)[0]?.mend).toContain('insecure-plaintext');
    const asked = loadConfig(sources('broker: { tls: { mode: insecure-plaintext } }', environment));
    expect(asked.broker.tls.mode).toBe('insecure-plaintext');
  });

  it('needs certificate and key together', () => {
    expect(problemsOf('database: { tls: { certFile: /c } }')).toMatchObject([{ at: 'database.tls.certFile' }]);
  });
});

describe('several hosts', () => {
  const far = {
    WAYBILL_DATABASE_URL: 'postgres://u:p@h1:5432,[::1]:5433,h3/shop?target_session_attrs=read-write',
    WAYBILL_BROKER_URL: 'amqps://u:p@mq1,mq2:5672/',
  };

  it('are accepted and protected as the farthest of them', () => {
    const { database, broker } = loadConfig(sources(undefined, far));
    expect([database.tls.mode, broker.tls.mode]).toEqual(['verify-full', 'verify-full']);
    const local = loadConfig(
      sources('database: { url: "postgres://u:p@[::1]:5432,127.0.0.1:5433/shop" }', URLS_BROKER),
    );
    expect(local.database.tls.mode).toBe('insecure-plaintext');
  });

  it('of a broker must all be amqps or all on this machine', () => {
    const problems = problemsOf(undefined, { ...far, WAYBILL_BROKER_URL: 'amqp://u:p@127.0.0.1,mq.example/' });
    expect(problems).toMatchObject([{ at: 'broker.url (from WAYBILL_BROKER_URL)' }]);
  });

  it('have their password among the secrets', () => {
    const url = 'postgres://u:top%2Csecret@h1:1,h2:2/shop';
    const secrets = secretsOf(loadConfig(sources(undefined, { ...far, WAYBILL_DATABASE_URL: url })));
    expect(secrets).toEqual(expect.arrayContaining(['top%2Csecret', 'top,secret']));
  });
});

describe('a password command', () => {
  it('is a list in the file and a JSON array in the environment', () => {
    const file = loadConfig(sources('database: { passwordCommand: [vault, read, "-field=pw"] }'));
    expect(file.database.passwordCommand).toEqual(['vault', 'read', '-field=pw']);
    const environment = { ...URLS, WAYBILL_BROKER_PASSWORD_COMMAND: '["/bin/token", "{host}"]' };
    expect(loadConfig(sources(undefined, environment)).broker.passwordCommand).toEqual(['/bin/token', '{host}']);
  });

  it.each(['vault read', '[]', '[""]', '[1]', '["a", null]', '{"a": 1}', '["a'])(
    '%j is refused and not repeated',
    (text) => {
      const [problem] = problemsOf(undefined, { ...URLS, WAYBILL_DATABASE_PASSWORD_COMMAND: text });
      expect(problem?.at).toBe('database.passwordCommand (from WAYBILL_DATABASE_PASSWORD_COMMAND)');
      expect(problem?.problem).toBe('is not a list of a program and its arguments');
    },
  );
});

describe('problems', () => {
  it('F119 are all told at once, each with key and mend', () => {
    const text = `
database: { url: "mysql://u:hunter22@h/db", schema: pg_mine, scheme: a }
broker: { heartbeat: 0, url: "amqp://u:p@127.0.0.1/?heartbeat=0" }
relay: { name: "Bad Name", sweepInterval: 30, maxInFlight: many, ordering: strikt, routingKey: "{typ}", maxInFlite: 3 }
lag: { level: info }
`;
    const found = problemsOf(text, { WAYBILL_RELAY_STAL_TIMEOUT: '1s', WAYBILL_RELAY_HISTORY: 'none' });
    expect(found.map(({ at }) => at).sort()).toEqual(
      [
        'WAYBILL_RELAY_STAL_TIMEOUT',
        'database.url',
        'database.schema',
        'database.scheme',
        'broker.heartbeat',
        'broker.url',
        'relay.name',
        'relay.sweepInterval',
        'relay.maxInFlight',
        'relay.ordering',
        'relay.routingKey',
        'relay.maxInFlite',
        'relay.history (from WAYBILL_RELAY_HISTORY)',
        'lag',
      ].sort(),
    );
    expect(found.every(({ mend }) => mend.length > 5)).toBe(true);
    expect(JSON.stringify(found)).not.toContain('hunter22');
  });

  it.each([
    ['relay: { maxInFlite: 3 }', 'relay.maxInFlight'],
    ['relay: { max_in_flight: 3 }', 'relay.maxInFlight'],
    ['databse: { url: a }', 'database'],
    ['broker: { heartBeat: 3s }', 'broker.heartbeat'],
    ['relay: { heartbeat: 3s }', 'broker.heartbeat'],
    ['relay: { onUnroutable: { retry: 3s } }', 'relay.onUnroutable.retryFor'],
  ])('%s names what was probably meant', (text, meant) => {
    expect(problemsOf(text).map(({ mend }) => mend)).toContain(`${meant} is probably meant`);
  });

  it('F86 a heartbeat of 0 is refused in every spelling', () => {
    for (const heartbeat of ['0', '"0s"', '"0ms"', '500ms']) {
      expect(problemsOf(`broker: { heartbeat: ${heartbeat} }`)).toMatchObject([{ at: 'broker.heartbeat' }]);
    }
  });

  it('F119 a key by variable and by file is refused', () => {
    const environment = { ...URLS, WAYBILL_DATABASE_URL_FILE: '/run/db' };
    expect(problemsOf(undefined, environment)).toMatchObject([
      { at: 'WAYBILL_DATABASE_URL', problem: 'and WAYBILL_DATABASE_URL_FILE are both set' },
    ]);
  });

  it('a secret file that cannot be read or is empty is named with the reason', () => {
    const { WAYBILL_BROKER_URL } = URLS;
    const environment = { WAYBILL_BROKER_URL, WAYBILL_DATABASE_URL_FILE: '/run/db' };
    const [unreadable, ...more] = problemsOf(undefined, environment);
    expect(unreadable?.problem).toContain('ENOENT');
    expect(more).toEqual([]);
    expect(problemsOf(undefined, environment, { '/run/db': '\n' })[0]?.problem).toBe('names an empty file');
  });

  it('a YAML error is told with its place, without the text around it and without consequences', () => {
    const found = problemsOf('database:\n  url: "postgres://u:hunter22@h/d\nbroker: [', {});
    expect(found.length).toBeGreaterThan(0);
    expect(found.every(({ at }) => at === 'waybill.yaml')).toBe(true);
    expect(JSON.stringify(found)).not.toContain('hunter22');
  });

  it.each(['- a', 'text', 'a: *missing', 'a: &a [*a]', '__proto__: { x: 1 }', 'relay: 5', 'relay: [1]', 'a: 1\na: 2'])(
    'the file %j is refused in words',
    (text) => expect(problemsOf(text)[0]?.mend).toBeTruthy(),
  );

  it('a section that the file spoils does not hide the environment problem', () => {
    const found = problemsOf('relay: 5', { ...URLS, WAYBILL_RELAY_NAME: 'x' });
    expect(found.map(({ at }) => at)).toContain('WAYBILL_RELAY_NAME');
  });

  it.each([
    'postgres://u:p#ss@h/db',
    'postgres://u:12/34@h/db',
    'postgres://u:p?ss@h/db',
    'postgres://u:100%@h/db',
    'postgres://h1,/db',
    'postgres://u:p@h1:1,,h2:2/db',
    'postgres://u:p@h1:1,h2:port/db',
    'postgres://u:p@/db?host=h1,h2',
    'postgres:///db?host=h1,h2',
    'postgres://h1,h2/db?target_session_attrs=any',
    'postgres://u:p@h/',
    'postgres://u:p@h/db?sslmode=require',
    'u:p@h/db',
    ' postgres://u:p@h/db',
    '',
  ])('the database URL %j is refused and not repeated', (url) => {
    const [problem] = problemsOf(`database: { url: ${JSON.stringify(url)} }`, {
      WAYBILL_BROKER_URL: URLS.WAYBILL_BROKER_URL,
    });
    expect(problem?.at).toMatch(/^database\.url/);
    if (url !== '') expect(JSON.stringify(problem)).not.toContain(url);
  });

  it('no message ever holds the password of a URL, whatever else is wrong with it', () => {
    const passwords = fc.string({ minLength: 8, unit: 'grapheme-ascii' }).filter((text) => !/^[\w .:/]*$/.test(text));
    const shapes = fc.constantFrom(
      (p: string) => `postgres://u:${p}@h/db`,
      (p: string) => `postgres://u:${p}@h:port/db`,
      (p: string) => `mysql://u:${p}@h/db`,
      (p: string) => `amqp://u:${p}@far/`,
      (p: string) => p,
    );
    fc.assert(
      fc.property(passwords, shapes, fc.boolean(), (password, shape, inFile) => {
        const url = shape(password);
        const text = inFile
          ? `database: { url: ${JSON.stringify(url)} }\nbroker: { url: ${JSON.stringify(url)} }`
          : undefined;
        const environment = inFile ? {} : { WAYBILL_DATABASE_URL: url, WAYBILL_BROKER_URL: url };
        // One of the two is always wrong, because no scheme fits both.
        expect(JSON.stringify(problemsOf(text, environment))).not.toContain(JSON.stringify(password).slice(1, -1));
      }),
    );
  });
});

describe('a part of the configuration', () => {
  it('the database section does without the broker', () => {
    const environment = { WAYBILL_DATABASE_URL: URLS.WAYBILL_DATABASE_URL };
    expect(loadDatabaseConfig(sources('database: { schema: shop }', environment))).toMatchObject({ schema: 'shop' });
    expect(() => loadDatabaseConfig(sources(undefined, {}))).toThrow('database.url');
  });

  it('the schema name does without both', () => {
    expect(loadSchemaName(sources(undefined, {}))).toBe('waybill');
    expect(loadSchemaName(sources('database: { schema: shop }', {}))).toBe('shop');
  });
});

describe('secretsOf', () => {
  it('gives the passwords as written and decoded', () => {
    const environment = { ...URLS, WAYBILL_BROKER_URL: 'amqp://u:p%40ss%2Fword@127.0.0.1/' };
    const secrets = secretsOf(loadConfig(sources(undefined, environment)));
    expect(secrets).toEqual(expect.arrayContaining(['s3cret-db', 'p@ss/word', 'p%40ss%2Fword']));
  });
});
