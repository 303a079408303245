import { connect as connectTcp, isIP, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';

/** What PostgreSQL answers with S or N: its manual, "SSL Session Encryption". */
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);
const LIMIT_MS = 5_000;

/**
 * When the certificate that a server shows ends; undefined where it shows none or does not answer. Only looks: whether
 * the certificate is to be trusted is the connection's own matter.
 */
export async function peerCertificateEnd(url: string, defaultPort: number): Promise<Date | undefined> {
  const { protocol, hostname, port } = new URL(url);
  const host = hostname.replace(/^\[|\]$/g, '');
  const isPostgres = protocol.startsWith('postgres');
  if (host === '' || (!isPostgres && protocol !== 'amqps:')) return undefined;
  const socket = connectTcp({ host, port: port === '' ? defaultPort : Number(port), timeout: LIMIT_MS });
  try {
    return await within(socket, async () => {
      if (isPostgres && !(await asksForTls(socket))) return undefined;
      return shown(socket, host);
    });
  } catch {
    return undefined;
  } finally {
    socket.destroy();
  }
}

/** Rejects when the socket fails or is silent for too long. */
function within<T>(socket: Socket, work: () => Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    socket.once('error', reject);
    socket.once('timeout', () => reject(new Error('silent')));
    socket.once('close', () => reject(new Error('closed')));
    socket.once('connect', () => void work().then(resolve, reject));
  });
}

function asksForTls(socket: Socket): Promise<boolean> {
  return new Promise((resolve) => {
    socket.once('data', (answer: Buffer) => resolve(answer.toString('latin1', 0, 1) === 'S'));
    socket.write(SSL_REQUEST);
  });
}

function shown(socket: Socket, host: string): Promise<Date | undefined> {
  return new Promise((resolve, reject) => {
    const secure = connectTls(
      { socket, rejectUnauthorized: false, ...(isIP(host) === 0 ? { servername: host } : {}) },
      () => {
        const { valid_to: end } = secure.getPeerCertificate() as { valid_to?: string };
        secure.destroy();
        resolve(end === undefined ? undefined : new Date(end));
      },
    );
    secure.once('error', reject);
  });
}
