import { readFileSync } from 'node:fs';
import { checkServerIdentity, type ConnectionOptions } from 'node:tls';
import { hostUrls } from '../config/hosts.js';
import type { Config } from '../config/load.js';
import type { TlsConfig } from '../config/tls.js';
import { WaybillError } from '../core/errors.js';
import { POSTGRES_PORT, type DatabaseEndpoint } from '../postgres/connect.js';
import { sameServer, type DatabaseEndpoints } from '../postgres/primary.js';
import { AMQP_PORT, AMQPS_PORT, type BrokerEndpoints } from '../rabbitmq/connection.js';
import { passwordFrom } from './password-command.js';

/**
 * What node:tls needs for a configured protection, or undefined for plaintext. The files are read here, at each
 * connection, so that rotated certificates are taken up. `verify-ca` checks the authority and leaves the name.
 */
export function tlsOptions(tls: TlsConfig): ConnectionOptions | undefined {
  if (tls.mode === 'insecure-plaintext') return undefined;
  return {
    rejectUnauthorized: tls.mode !== 'insecure-no-verification',
    checkServerIdentity: tls.mode === 'verify-full' ? checkServerIdentity : () => undefined,
    ...(tls.caFile === undefined ? {} : { ca: readTlsFile(tls.caFile) }),
    ...(tls.certFile === undefined ? {} : { cert: readTlsFile(tls.certFile) }),
    ...(tls.keyFile === undefined ? {} : { key: readTlsFile(tls.keyFile) }),
  };
}

/** The servers of database.url as the adapters take them. */
export function databaseEndpoints(database: Config['database']): DatabaseEndpoints {
  return endpointsOf(database.url, database.tls, database.passwordCommand);
}

/**
 * The same for the replication connection, which may go past a pooler. Where it has no URL of its own it goes to the
 * server that the SQL connection has found.
 */
export function replicationEndpoints(
  database: Config['database'],
  found: DatabaseEndpoint | undefined,
): DatabaseEndpoints {
  const servers = endpointsOf(database.replicationUrl, database.replicationTls, database.passwordCommand);
  const same = found && database.replicationUrl === database.url ? sameServer(servers, found) : undefined;
  return same ? [same] : servers;
}

function endpointsOf(urls: string, tls: TlsConfig, command: Config['database']['passwordCommand']): DatabaseEndpoints {
  const ssl = tlsOptions(tls);
  return each(hostUrls(urls), (url) => ({
    url,
    ...(ssl === undefined ? {} : { ssl }),
    ...(command === undefined ? {} : { password: passwordFrom(command, 'database', url, POSTGRES_PORT) }),
  }));
}

/** The nodes of broker.url as the adapter takes them. */
export function brokerEndpoints(broker: Config['broker']): BrokerEndpoints {
  const { passwordCommand: command, heartbeatMs, connectTimeoutMs } = broker;
  const encrypted = broker.url.startsWith('amqps:');
  const tls = encrypted ? tlsOptions(broker.tls) : undefined;
  const port = encrypted ? AMQPS_PORT : AMQP_PORT;
  return each(hostUrls(broker.url), (url) => ({
    url,
    heartbeatSeconds: Math.max(1, Math.round(heartbeatMs / 1000)),
    connectTimeoutMs,
    ...(tls === undefined ? {} : { tls }),
    ...(command === undefined ? {} : { password: passwordFrom(command, 'broker', url, port) }),
  }));
}

function each<T, U>([first, ...others]: readonly [T, ...T[]], make: (item: T) => U): [U, ...U[]] {
  return [make(first), ...others.map(make)];
}

function readTlsFile(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    throw new WaybillError('WAYBILL_CONFIG_INVALID', `The TLS file ${path} cannot be read (${code}).`, {
      hint: 'Check the path in the tls section and the rights of the user that runs Waybill.',
      cause: error,
    });
  }
}
