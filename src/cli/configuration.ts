import {
  loadBrokerConfig,
  loadConfig,
  loadConsumerNames,
  loadDatabaseConfig,
  loadSchemaName,
  secretsOf,
  type BrokerConfig,
  type Config,
  type ConfigSources,
} from '../config/load.js';
import { ConfigInvalid } from '../config/problems.js';
import { passwordsIn } from '../config/urls.js';
import { knownSecrets } from '../telemetry/redact.js';
import type { CliContext } from './context.js';

/** Options that every command takes. */
export interface GlobalOptions {
  config?: string;
  verbose?: boolean;
}

/** The configuration as a command needs it, read anew by each call; its secrets become known ones. */
export interface Configuration {
  /** Everything, checked. */
  whole(): Config;
  /** The database section alone, for commands that have no business with the broker. */
  database(): Config['database'];
  /** What has to do with the broker, for commands that have no business with the database. */
  broker(): BrokerConfig;
  /** The names of the configured consumers. */
  consumerNames(): string[];
  /** The schema name alone, for commands that need no connection. */
  schemaName(): string;
}

/** Reads the file of --config or WAYBILL_CONFIG, and the environment over it, when a command asks for it. */
export function configuration(context: CliContext, options: () => GlobalOptions): Configuration {
  const sources = (): ConfigSources => ({
    file: readConfigFile(context, options().config),
    environment: context.environment,
    readFile: context.readFile,
  });
  return {
    whole() {
      const config = loadConfig(sources());
      knownSecrets.add(secretsOf(config));
      return config;
    },
    database() {
      const database = loadDatabaseConfig(sources());
      knownSecrets.add([database.url, database.replicationUrl].flatMap(passwordsIn));
      return database;
    },
    broker() {
      const config = loadBrokerConfig(sources());
      knownSecrets.add(passwordsIn(config.broker.url));
      return config;
    },
    consumerNames: () => loadConsumerNames(sources()),
    schemaName: () => loadSchemaName(sources()),
  };
}

/** The configuration that an environment alone makes. */
export function configFrom(environment: CliContext['environment'], readFile: CliContext['readFile']): Config {
  return loadConfig({ environment, readFile });
}

function readConfigFile(context: CliContext, option: string | undefined): ConfigSources['file'] {
  const name = option ?? (context.environment['WAYBILL_CONFIG'] || undefined);
  if (name === undefined) return undefined;
  try {
    return { name, text: context.readFile(name) };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    throw new ConfigInvalid([
      {
        at: option === undefined ? 'WAYBILL_CONFIG' : '--config',
        problem: `names ${name}, which cannot be read (${code})`,
        mend: 'check the path and the rights of the user that runs Waybill',
      },
    ]);
  }
}
