import { readFileSync } from 'node:fs';
import { checkServerIdentity, type ConnectionOptions } from 'node:tls';
import type { Config, TlsConfig } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import type { DatabaseEndpoint } from '../postgres/connect.js';
import type { BrokerEndpoint } from '../rabbitmq/connection.js';

/**
 * What node:tls needs for a configured protection, or undefined for plaintext. The files are read here, at each
 * connection, so that rotated certificates are taken up. `verify-ca` checks the authority and leaves the name.
 */
function tlsOptions(tls: TlsConfig): ConnectionOptions | undefined {
  if (tls.mode === 'insecure-plaintext') return undefined;
  return {
    rejectUnauthorized: tls.mode !== 'insecure-no-verification',
    checkServerIdentity: tls.mode === 'verify-full' ? checkServerIdentity : () => undefined,
    ...(tls.caFile === undefined ? {} : { ca: readTlsFile(tls.caFile) }),
    ...(tls.certFile === undefined ? {} : { cert: readTlsFile(tls.certFile) }),
    ...(tls.keyFile === undefined ? {} : { key: readTlsFile(tls.keyFile) }),
  };
}

/** The database as the adapters take it. */
export function databaseEndpoint(database: Config['database']): DatabaseEndpoint {
  const ssl = tlsOptions(database.tls);
  return { url: database.url, ...(ssl === undefined ? {} : { ssl }) };
}

/** The same for the replication connection, which may go past a pooler. */
export function replicationEndpoint(database: Config['database']): DatabaseEndpoint {
  const ssl = tlsOptions(database.replicationTls);
  return { url: database.replicationUrl, ...(ssl === undefined ? {} : { ssl }) };
}

/** The broker as the adapter takes it. */
export function brokerEndpoint({ url, tls, heartbeatMs, connectTimeoutMs }: Config['broker']): BrokerEndpoint {
  const options = url.startsWith('amqps:') ? tlsOptions(tls) : undefined;
  const heartbeatSeconds = Math.max(1, Math.round(heartbeatMs / 1000));
  return { url, heartbeatSeconds, connectTimeoutMs, ...(options === undefined ? {} : { tls: options }) };
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
