import type { Config } from '../config/load.js';

/** F38: with the passwords of this moment; a configuration that went wrong leaves the old one, and the relay says so. */
export function freshServers(config: Config, reload: () => Config): Config {
  try {
    const { database, broker } = reload();
    return { ...config, database: { ...database, schema: config.database.schema }, broker };
  } catch {
    return config;
  }
}
