import pg from 'pg';
import { toDatabaseError } from './errors.js';

/** One server: where and as whom to connect. `ssl` is what node's tls takes; undefined means plaintext. */
export interface DatabaseEndpoint {
  url: string;
  ssl?: pg.ClientConfig['ssl'];
  /** Asked at each connection; what it gives replaces the password of the URL. Rejects with a WaybillError. */
  password?: () => Promise<string>;
}

/**
 * Settings of the role, the database or the server that every connection of ours pins. Those that change how values are
 * written as text would change what pgoutput sends, and a copy from the table would differ from a copy from the log (O7).
 * Under another isolation, a statement that waited for the lock of a key would not see the row that it waited for.
 */
const PINNED_SETTINGS: Readonly<Record<string, string>> = {
  bytea_output: 'hex',
  datestyle: 'ISO, MDY',
  intervalstyle: 'postgres',
  timezone: 'UTC',
  extra_float_digits: '1',
  client_encoding: 'UTF8',
  default_transaction_isolation: 'read committed',
  // Off, a null in a list would become the text NULL.
  array_nulls: 'on',
};

/**
 * Takes from a connection the time limit of a transaction, which servers from version 17 on know. A large transaction is
 * decoded in one of the walsender's own, which lasts until its rows are published; making a slot takes as long as the
 * longest transaction of others. Why from pg_settings: it has no row where the setting is not known.
 */
export const NO_TRANSACTION_TIMEOUT = `select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings
  where name operator(pg_catalog.=) 'transaction_timeout'`;

/**
 * Where our own statements look for what they name without a schema. On the path of a role, whoever may create in one of
 * its schemas could offer a function that fits better than PostgreSQL's own, and have it run as this role.
 */
const OWN_PATH = 'pg_catalog,pg_temp';

const CONNECT_TIMEOUT_MS = 10_000;
/** How long after statement_timeout the server may stay silent. */
const SILENCE_MS = 10_000;

export const POSTGRES_PORT = 5432;

/**
 * The options for a client, with the pinned settings as startup options where the server must know them at once. Made
 * anew for each connection, because a password may be good for one only.
 */
export async function clientConfig(
  endpoint: DatabaseEndpoint,
  applicationName: string,
  startup: boolean,
): Promise<pg.ClientConfig> {
  const options = Object.entries(PINNED_SETTINGS)
    .map(([name, value]) => `-c ${name}=${value.replaceAll(' ', '\\ ')}`)
    .concat(`-c search_path=${OWN_PATH}`)
    .join(' ');
  const password = await endpoint.password?.();
  const url = password === undefined ? endpoint.url : withPassword(endpoint.url, password);
  const { rest, given } = startup ? withoutOptions(url) : { rest: url, given: '' };
  return {
    connectionString: rest,
    ...(endpoint.ssl === undefined ? {} : { ssl: endpoint.ssl }),
    application_name: applicationName,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
    ...(startup ? { options: `${given} ${options}`.trim() } : {}),
  };
}

/** Why into the URL: pg lets the connection string, even one without a password, go before the option. */
function withPassword(urlText: string, password: string): string {
  const url = new URL(urlText);
  if (url.hostname === '') url.searchParams.set('password', password);
  else {
    url.searchParams.delete('password');
    url.password = encodeURIComponent(password);
  }
  return url.href;
}

/** Why out of the URL: pg would take its options in place of ours. Of two settings of one name the later one counts. */
function withoutOptions(urlText: string): { rest: string; given: string } {
  const url = new URL(urlText);
  const given = url.searchParams.get('options');
  if (given === null) return { rest: urlText, given: '' };
  url.searchParams.delete('options');
  return { rest: url.href, given };
}

/** What a connection that dies outside a statement is told to. */
export type OnConnectionError = (error: Error) => void;

/** How an SQL connection is set up. */
export interface ConnectionLimits {
  lockTimeoutMs?: number;
  statementTimeoutMs?: number;
  keepsSearchPath?: boolean;
  /** Who acts, for the action_log. */
  operator?: string;
}

/**
 * An SQL connection with pinned settings and bounded waits: lock_timeout 1 s, statement_timeout 60 s (milliseconds may be
 * given). With keepsSearchPath that of the role stays, for handlers: statements there must name everything exactly.
 * Rejects with a WaybillError.
 */
export async function connectSql(
  endpoint: DatabaseEndpoint,
  applicationName: string,
  onError: OnConnectionError,
  limits: ConnectionLimits = {},
): Promise<pg.Client> {
  const { lockTimeoutMs = 1_000, statementTimeoutMs = 60_000, keepsSearchPath = false, operator } = limits;
  const client = new pg.Client({
    ...(await clientConfig(endpoint, applicationName, false)),
    // Why on our side too: a server that was cut off without a word never tells that its time is over.
    ...(statementTimeoutMs > 0 ? { query_timeout: statementTimeoutMs + SILENCE_MS } : {}),
  });
  client.on('error', onError);
  try {
    await client.connect();
    await client.query(
      [
        ...Object.entries(PINNED_SETTINGS).map(([name, value]) => `set ${name} = '${value}'`),
        // Our statements are short: to compile one takes longer than to run it.
        ...(keepsSearchPath ? [] : [`set search_path = ${OWN_PATH}`, 'set jit = off']),
        `set lock_timeout = ${lockTimeoutMs}`,
        `set statement_timeout = ${statementTimeoutMs}`,
        `set idle_in_transaction_session_timeout = 60000`,
        // Without messages there is nothing to say for long.
        `set idle_session_timeout = 0`,
        NO_TRANSACTION_TIMEOUT,
        ...(operator === undefined ? [] : [`set waybill_cli.operator = ${client.escapeLiteral(operator)}`]),
      ].join('; '),
    );
    // A backend that waits for a lock then notices that its client is gone. Not every server's system can do it.
    await client.query('set client_connection_check_interval = 10000').catch(() => undefined);
    return client;
  } catch (error) {
    closeQuietly(client);
    throw toDatabaseError(error, 'connecting to PostgreSQL');
  }
}

/**
 * Makes a connection the relay's writer or reader. No sequential scans and no JIT: its statements go by key or by a
 * partial index, and a plan made while the table was small must not scan it when it is large. Commits of the writer wait
 * neither for the disk nor for a standby, unless a statement asks for it: see RelayStore.
 */
export async function forRelay(client: pg.Client, use: 'writer' | 'reader'): Promise<void> {
  try {
    await client.query('set enable_seqscan = off; set jit = off');
    if (use === 'writer') await client.query('set synchronous_commit = off');
  } catch (error) {
    throw toDatabaseError(error, 'setting up the database connection');
  }
}

/**
 * Has commits answered only when they are on the disk, also where the settings of the role, the database or the server
 * say otherwise; what waits for standbys as well stays. For whoever acknowledges to a broker what was committed (I1).
 */
export async function withDurableCommits(client: pg.Client): Promise<void> {
  try {
    await client.query(
      `select pg_catalog.set_config('synchronous_commit', 'on', false)
       where pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.=) 'off'`,
    );
  } catch (error) {
    throw toDatabaseError(error, 'setting up the database connection');
  }
}

/** Closes without waiting: a peer that is gone must not hold us up. */
export function closeQuietly(client: pg.Client): void {
  client.removeAllListeners('error');
  client.on('error', () => undefined);
  client.end().catch(() => undefined);
}
