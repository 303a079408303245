import { staysLocal } from './hosts.js';
import { hostNames, isLoopback, parseListen } from './listen.js';
import { passwordsIn } from './urls.js';
import { ConfigInvalid, type ConfigProblem } from './problems.js';
import { environmentName } from './keys.js';
import { settings, type Settings } from './schema.js';
import {
  applyEnvironment,
  consumerNames,
  nearestKey,
  parseFile,
  type Environment,
  type Origins,
  type RawTree,
} from './sources.js';
import { resolveTls, type TlsMode } from './tls.js';

/** What loadConfig reads; it touches nothing else. */
export interface ConfigSources {
  /** The configuration file, when there is one. `name` is how messages call it. */
  file?: { name: string; text: string } | undefined;
  environment: Environment;
  /** Reads the file that a `*_FILE` variable names; throws like node:fs. */
  readFile: (path: string) => string;
}

/** The whole configuration, checked: durations end in Ms, sizes in Bytes. */
export type Config = ReturnType<typeof toConfig>;

/** Reads and checks everything, or throws ConfigInvalid with all problems at once. */
export function loadConfig(sources: ConfigSources): Config {
  const { parsed } = read(sources, []);
  if (!parsed.success) throw new ConfigInvalid([]);
  return toConfig(parsed.data);
}

/** The database section alone, checked; the broker's URL may be missing. For commands that only touch the database. */
export function loadDatabaseConfig(sources: ConfigSources): Config['database'] {
  const { tree } = read(sources, ['broker.url']);
  return toDatabase(settings.shape.database.parse(tree['database']));
}

/** What commands need that have to do with the broker alone. */
export type BrokerConfig = Pick<Config, 'broker' | 'relay' | 'consumers'>;

/** Stands for the database of commands that never connect to one. */
const NO_DATABASE = 'postgres://localhost/none';

/** Broker, relay and consumers, checked; the database's URL may be missing. */
export function loadBrokerConfig(sources: ConfigSources): BrokerConfig {
  const { parsed } = read(sources, [], NO_DATABASE);
  if (!parsed.success) throw new ConfigInvalid([]);
  const { broker, relay, consumers } = toConfig(parsed.data);
  return { broker, relay, consumers };
}

/** The names of the configured consumers alone; the broker's URL may be missing. */
export function loadConsumerNames(sources: ConfigSources): string[] {
  return consumerNames(read(sources, ['broker.url']).tree);
}

/** The configured schema name alone; both URLs may be missing. For commands that connect to nothing. */
export function loadSchemaName(sources: ConfigSources): string {
  const { tree } = read(sources, ['broker.url', 'database.url']);
  const { shape } = settings.shape.database.unwrap();
  return shape.schema.parse((tree['database'] as RawTree | undefined)?.['schema']);
}

function read({ file, environment, readFile }: ConfigSources, mayBeMissing: readonly string[], noDatabase?: string) {
  const problems: ConfigProblem[] = [];
  const tree = file ? parseFile(file.text, file.name, problems) : {};
  if (typeof tree['relay'] === 'boolean') tree['relay'] = { enabled: tree['relay'] };
  const fileIsBroken = problems.length > 0;
  const origins = applyEnvironment(tree, environment, readFile, problems);
  if (noDatabase !== undefined && !origins.has('database.url')) {
    const section = (tree['database'] ??= {});
    if (typeof section === 'object') (section as RawTree)['url'] ??= noDatabase;
  }
  const parsed = settings.safeParse(tree);
  for (const issue of parsed.error?.issues ?? []) {
    const missing = issue.message === 'is missing';
    // Why: behind a file that could not be read, every required key would be called missing.
    // Behind a variable that is at fault itself, too.
    const name = issue.path.join('.');
    if (missing && (fileIsBroken || origins.has(name) || mayBeMissing.includes(name))) continue;
    problems.push(...describe(issue, origins));
  }
  if (parsed.success) problems.push(...checkTogether(parsed.data, origins));
  if (problems.length > 0) throw new ConfigInvalid(problems);
  return { tree, parsed };
}

/** Every secret text of a configuration, in each form in which it may turn up, for the log sink to take out. */
export function secretsOf(config: Config): string[] {
  const urls = [config.database.url, config.database.replicationUrl, config.broker.url];
  return [...new Set(urls.flatMap(passwordsIn))];
}

type Issue = NonNullable<ReturnType<typeof settings.safeParse>['error']>['issues'][number];

function describe(issue: Issue, origins: Origins): ConfigProblem[] {
  const path = issue.path.map(String);
  const name = path.join('.');
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((unknown) => {
      const whole = [...path, unknown];
      const meant = nearestKey(whole);
      return {
        at: whole.join('.'),
        problem: 'is no key of Waybill',
        mend: meant === undefined ? 'take it out' : `${meant} is probably meant`,
      };
    });
  }
  if (issue.code === 'custom') {
    const mend: unknown = issue.params?.['mend'];
    const missing = issue.message === 'is missing' ? ` (or ${environmentName(path)})` : '';
    return [{ at: place(name, origins) + missing, problem: issue.message, mend: String(mend) }];
  }
  return [{ at: place(name, origins), problem: 'is not a section', mend: 'indent its keys beneath it' }];
}

function place(name: string, origins: Origins): string {
  const origin = origins.get(name);
  return origin === undefined ? name : `${name} (from ${origin})`;
}

function checkTogether(given: Settings, origins: Origins): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  for (const section of ['database', 'broker'] as const) {
    const { certFile, keyFile } = given[section].tls;
    if ((certFile === undefined) !== (keyFile === undefined)) {
      const [has, lacks] = certFile === undefined ? ['keyFile', 'certFile'] : ['certFile', 'keyFile'];
      problems.push({
        at: `${section}.tls.${has}`,
        problem: 'is given alone',
        mend: `give ${section}.tls.${lacks} too`,
      });
    }
  }
  const { url, tls } = given.broker;
  const encrypted = url.startsWith('amqps:');
  if (!encrypted && tls.mode !== 'insecure-plaintext' && (tls.mode !== undefined || !staysLocal(url))) {
    problems.push({
      at: place('broker.url', origins),
      problem: 'is amqp://, which sends the password and every message readable over the network',
      mend: 'use amqps://, or accept it with broker.tls.mode: insecure-plaintext',
    });
  }
  if (encrypted && tls.mode === 'insecure-plaintext') {
    problems.push({
      at: place('broker.tls.mode', origins),
      problem: 'contradicts broker.url, which is amqps://',
      mend: 'take one of them back',
    });
  }
  const listen = parseListen(given.admin.listen);
  if (listen && !isLoopback(listen) && given.admin.tokenFile === undefined) {
    problems.push({
      at: place('admin.listen', origins),
      problem: 'is open to other machines, and /status would be open to all of them',
      mend: 'give admin.tokenFile, or listen on 127.0.0.1',
    });
  }
  if (given.relay.maxInFlightBytes < given.relay.maxBodyBytes) {
    problems.push({
      at: place('relay.maxInFlightBytes', origins),
      problem: 'is less than relay.maxBodyBytes, so the largest body would never fit',
      mend: 'raise it, or lower relay.maxBodyBytes',
    });
  }
  return problems;
}

function toConfig({ database, broker, relay, consumers, retention, admin, log }: Settings) {
  const { heartbeat, connectTimeout, ...brokerRest } = broker;
  const {
    onUnroutable,
    historyRetention,
    checkpointInterval,
    sweepInterval,
    maxKeptWal,
    stallTimeout,
    confirmTimeout,
    drainTimeout,
    ...relayRest
  } = relay;
  return {
    database: toDatabase(database),
    broker: {
      ...brokerRest,
      tls: resolveTls(broker.tls, broker.url.startsWith('amqps:') ? 'verify-full' : 'insecure-plaintext'),
      heartbeatMs: heartbeat,
      connectTimeoutMs: connectTimeout,
    },
    relay: {
      ...relayRest,
      onUnroutable: { retryForMs: onUnroutable.retryFor, then: onUnroutable.then },
      historyRetentionMs: historyRetention,
      checkpointIntervalMs: checkpointInterval,
      sweepIntervalMs: sweepInterval,
      maxKeptWalBytes: maxKeptWal,
      stallTimeoutMs: stallTimeout,
      confirmTimeoutMs: confirmTimeout,
      drainTimeoutMs: drainTimeout,
    },
    consumers,
    retention: {
      firstTimeMs: retention.firstTime,
      newerMs: retention.newer,
      actionsMs: retention.actions,
      intervalMs: retention.interval,
    },
    admin: {
      /** Undefined: off. */
      listen: parseListen(admin.listen),
      tokenFile: admin.tokenFile,
      hostNames: hostNames(admin.hostNames),
      staleAfterMs: admin.staleAfter,
      collectIntervalMs: admin.collectInterval,
    },
    log,
  };
}

function toDatabase(database: Settings['database']) {
  const replicationUrl = database.replicationUrl ?? database.url;
  return {
    ...database,
    replicationUrl,
    tls: resolveTls(database.tls, databaseTlsMode(database.url)),
    replicationTls: resolveTls(database.tls, databaseTlsMode(replicationUrl)),
  };
}

function databaseTlsMode(url: string): TlsMode {
  return staysLocal(url) ? 'insecure-plaintext' : 'verify-full';
}
