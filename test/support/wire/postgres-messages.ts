import type { ByteQueue } from './byte-queue.js';
import { rawUnit, type Sender, type WireUnit } from './units.js';

/** Message types by their first byte (manual: "Message Formats"). */
const TYPES: Record<Sender, Record<string, string>> = {
  client: {
    ...{ Q: 'query', P: 'parse', B: 'bind', E: 'execute', S: 'sync', H: 'flush', D: 'describe', C: 'close' },
    ...{ p: 'password', X: 'terminate', d: 'copy_data', c: 'copy_done', f: 'copy_fail', F: 'function_call' },
  },
  server: {
    ...{ R: 'authentication', S: 'parameter_status', K: 'backend_key_data', Z: 'ready_for_query', E: 'error' },
    ...{ T: 'row_description', D: 'data_row', C: 'command_complete', N: 'notice', A: 'notification' },
    ...{ W: 'copy_both', G: 'copy_in', H: 'copy_out', d: 'copy_data', c: 'copy_done', I: 'empty_query' },
    ...{ 1: 'parse_complete', 2: 'bind_complete', 3: 'close_complete', n: 'no_data', t: 'parameter_description' },
    ...{ s: 'portal_suspended', v: 'negotiate_protocol' },
  },
};
/** What CopyData carries in replication (manual: "Streaming Replication Protocol"). */
const REPLICATION: Record<Sender, Record<string, string>> = {
  client: { r: 'standby_status', h: 'hot_standby_feedback' },
  server: { w: 'xlogdata', k: 'keepalive' },
};
/** Messages of pgoutput, which begin 25 bytes into XLogData. */
const PGOUTPUT: Record<string, string> = {
  ...{ B: 'begin', C: 'commit', R: 'relation', Y: 'type', I: 'insert', U: 'update', D: 'delete', T: 'truncate' },
  ...{ O: 'origin', M: 'message' },
};
const SSL_REQUEST = 80877103;
const GSS_REQUEST = 80877104;
const CANCEL_REQUEST = 80877102;

/** Reads one PostgreSQL connection; stateful, because start-up packets have no type byte. */
export class PostgresReader {
  #started = false;
  #encryptionAsked = false;
  #encrypted = false;

  /**
   * The next message: "pg.client.query", "pg.server.data_row" and so on; in replication "pg.client.standby_status",
   * "pg.server.keepalive", "pg.server.xlogdata" and also "pg.server.xlogdata.commit".
   */
  take(from: Sender, queue: ByteQueue): WireUnit | undefined {
    if (this.#encrypted) return rawUnit(from, queue);
    if (from === 'client' && !this.#started) return this.#startup(queue);
    if (from === 'server' && this.#encryptionAsked) return this.#encryptionAnswer(queue);
    const head = queue.peek(5);
    if (!head) return undefined;
    const size = 1 + head.readUInt32BE(1);
    if (queue.length < size) return undefined;
    const bytes = queue.take(size);
    const body = bytes.subarray(5);
    return { from, names: namesOf(from, String.fromCharCode(bytes[0]!), body), bytes, body };
  }

  #startup(queue: ByteQueue): WireUnit | undefined {
    const head = queue.peek(8);
    if (!head || queue.length < head.readUInt32BE(0)) return undefined;
    const code = head.readUInt32BE(4);
    const bytes = queue.take(head.readUInt32BE(0));
    this.#encryptionAsked = code === SSL_REQUEST || code === GSS_REQUEST;
    this.#started = !this.#encryptionAsked;
    const name = this.#encryptionAsked ? 'encryption_request' : code === CANCEL_REQUEST ? 'cancel' : 'startup';
    return { from: 'client', names: [`pg.client.${name}`], bytes, body: bytes.subarray(8) };
  }

  #encryptionAnswer(queue: ByteQueue): WireUnit | undefined {
    if (queue.length < 1) return undefined;
    const bytes = queue.take(1);
    this.#encryptionAsked = false;
    this.#encrypted = bytes[0] !== 0x4e;
    return { from: 'server', names: ['pg.server.encryption_answer'], bytes, body: bytes };
  }
}

function namesOf(from: Sender, type: string, body: Buffer): string[] {
  const base = `pg.${from}.`;
  if (type !== 'd') return [base + (TYPES[from][type] ?? `type-${type}`)];
  const carried = REPLICATION[from][String.fromCharCode(body[0] ?? 0)];
  const names = [`${base}copy_data`];
  if (carried) names.push(base + carried);
  const change = carried === 'xlogdata' ? PGOUTPUT[String.fromCharCode(body[25] ?? 0)] : undefined;
  if (change) names.push(`${base}xlogdata.${change}`);
  return names;
}
