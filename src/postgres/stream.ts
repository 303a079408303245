import type { Socket } from 'node:net';
import type pg from 'pg';
import { LogicalReplicationService } from 'pg-logical-replication';
import { WaybillError } from '../core/errors.js';
import { quoteIdentifier, quoteLiteral } from '../core/identity.js';
import { formatLsn, LSN_ZERO, maxLsn, type Lsn } from '../core/lsn.js';
import { within, type Clock } from '../runtime/clock.js';
import { clientConfig, NO_TRANSACTION_TIMEOUT, type DatabaseEndpoint } from './connect.js';
import { missingObject, sqlState, toDatabaseError } from './errors.js';
import { PgoutputDecoder, type WalEvent } from './pgoutput.js';

export interface StreamOptions {
  endpoint: DatabaseEndpoint;
  applicationName: string;
  schema: string;
  slot: string;
  publication: string;
  startLsn: Lsn;
  /** The server's wal_sender_timeout in milliseconds, 0 = off. The dead-server timer is never shorter. */
  walSenderTimeoutMs: number;
  clock: Clock;
  /** Called for everything that arrives, in the order of arrival. Must not throw. */
  onEvent: (event: WalEvent) => void;
  /** Called once, when the stream has ended for any reason but `close`. */
  onEnd: (error: WaybillError) => void;
}

/** What pg's connection object offers beyond its types: the copy-both side of the replication protocol. */
interface CopyConnection {
  stream: Socket;
  sendCopyFromChunk(chunk: Buffer): void;
  endCopyFrom(): void;
}

/** An idle server is asked for a word at least this often. */
export const STATUS_INTERVAL_MS = 5_000;
const MIN_DEAD_AFTER_MS = 60_000;
const CLOSE_LIMIT_MS = 2_000;
/** Microseconds between the Unix epoch and PostgreSQL's, 2000-01-01. */
const POSTGRES_EPOCH_MICROS = 946_684_800_000_000n;

/**
 * One replication connection. pg-logical-replication connects, starts and frames; everything it would do on its own
 * about acknowledging and flow control is off, because its timer acknowledges rows nobody handled, `acknowledge` sends
 * LSN + 1 and its flow control lets keepalives overtake rows. One service and one plugin a connection: a second
 * `subscribe` on the same instance skips what was not acknowledged.
 */
export class ReplicationStream {
  readonly #service: LogicalReplicationService;
  readonly #options: StreamOptions;
  readonly #decoder: PgoutputDecoder;
  #client: pg.Client | undefined;
  #copy: CopyConnection | undefined;
  #subscription: Promise<void> = Promise.resolve();
  #cancelTimer: () => void = () => undefined;
  #ended = false;
  #paused = false;
  #lastHeardMs: number;
  #receivedLsn: Lsn;
  #settledLsn: Lsn = LSN_ZERO;

  private constructor(options: StreamOptions, config: pg.ClientConfig) {
    this.#options = options;
    this.#decoder = new PgoutputDecoder(options.schema);
    this.#receivedLsn = options.startLsn;
    this.#lastHeardMs = options.clock.now();
    this.#service = new LogicalReplicationService(config, {
      acknowledge: { auto: false, timeoutSeconds: 0 },
      flowControl: { enabled: false },
    });
  }

  /** Resolves when the server has accepted START_REPLICATION; the connection is closed if it does not. */
  static async open(options: StreamOptions): Promise<ReplicationStream> {
    const config = await clientConfig(options.endpoint, options.applicationName, true);
    const stream = new ReplicationStream(options, config);
    try {
      await stream.#start();
      return stream;
    } catch (error) {
      stream.#ended = true;
      await stream.#stop();
      throw toDatabaseError(error, `starting replication from slot ${options.slot}`);
    }
  }

  async #start(): Promise<void> {
    const { slot, publication } = this.#options;
    const plugin = {
      name: 'waybill-pgoutput',
      options: {},
      start: async (client: pg.Client, slotName: string, lsn: string): Promise<unknown> => {
        this.#client = client;
        this.#copy = (client as unknown as { connection: CopyConnection }).connection;
        await client.query(NO_TRANSACTION_TIMEOUT);
        // Replication commands take no parameters.
        return client.query(
          `START_REPLICATION SLOT ${quoteIdentifier(slotName)} LOGICAL ${lsn} ` +
            `(proto_version '1', publication_names ${quoteLiteral(quoteIdentifier(publication))})`,
        );
      },
      parse: (buffer: Buffer): WalEvent | undefined => this.#parse(buffer),
    };
    this.#service.on('data', (_lsn: string, event: WalEvent | undefined) => this.#onData(event));
    this.#service.on('heartbeat', (lsn: string, _timestamp: number, replyRequested: boolean) =>
      this.#onKeepalive(lsn, replyRequested),
    );
    this.#service.on('error', (error: Error) => this.#end(error));
    await new Promise<void>((resolve, reject) => {
      this.#service.once('start', resolve);
      this.#subscription = this.#service.subscribe(plugin as never, slot, formatLsn(this.#options.startLsn)).then(
        () => this.#end(new Error('the server ended the stream')),
        (error: unknown) => {
          reject(error instanceof Error ? error : new Error('the stream could not be started', { cause: error }));
          this.#end(error);
        },
      );
    });
    this.#schedule();
  }

  /** Why not throw: a throw here becomes an uncaught exception of the process. */
  #parse(buffer: Buffer): WalEvent | undefined {
    try {
      return this.#decoder.decode(buffer);
    } catch (error) {
      this.#end(error);
      return undefined;
    }
  }

  #onData(event: WalEvent | undefined): void {
    this.#lastHeardMs = this.#options.clock.now();
    if (event && !this.#ended) this.#options.onEvent(event);
  }

  #onKeepalive(lsn: string, replyRequested: boolean): void {
    this.#lastHeardMs = this.#options.clock.now();
    if (this.#ended) return;
    const [high = '0', low = '0'] = lsn.split('/');
    const walEnd = (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`);
    this.#options.onEvent({ kind: 'keepalive', walEnd, replyRequested });
    // Why at once: while rows are queued the keepalive waits its turn, and the server must not take us for dead.
    if (replyRequested) this.#sendStatus(false);
  }

  /** Stops reading from the socket; status updates go on, so that the server does not time out. */
  pause(): void {
    if (this.#paused) return;
    this.#paused = true;
    this.#copy?.stream.pause();
  }

  /** When the server was heard last (monotonic milliseconds). */
  get lastHeardMs(): number {
    return this.#lastHeardMs;
  }

  get isPaused(): boolean {
    return this.#paused;
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#lastHeardMs = this.#options.clock.now();
    this.#copy?.stream.resume();
  }

  /**
   * Tells the server what was handled and what is settled. Neither decreases (O2); `settled` is what the slot may
   * forget. With `ping` the server answers with a keepalive at once.
   */
  report(received: Lsn, settled: Lsn, ping = false): void {
    this.#receivedLsn = maxLsn(this.#receivedLsn, maxLsn(received, settled));
    this.#settledLsn = maxLsn(this.#settledLsn, settled);
    this.#sendStatus(ping);
  }

  /** Sends the last status, ends the copy and closes, waiting at most 2 s for the server. */
  async close(): Promise<void> {
    if (this.#ended) return this.#stop();
    this.#sendStatus(false);
    this.#ended = true;
    this.#cancelTimer();
    try {
      this.resume();
      this.#copy?.endCopyFrom();
      await within(this.#options.clock, this.#subscription, CLOSE_LIMIT_MS, undefined);
    } finally {
      await this.#stop();
    }
  }

  /** Drops the connection at once, as when the session has failed. */
  async abort(): Promise<void> {
    this.#ended = true;
    await this.#stop();
  }

  #sendStatus(ping: boolean): void {
    if (!this.#copy || this.#ended) return;
    this.#copy.sendCopyFromChunk(
      statusUpdate(this.#receivedLsn, this.#settledLsn, BigInt(Date.now()) * 1000n - POSTGRES_EPOCH_MICROS, ping),
    );
  }

  /** Status on our own timer, with a ping; no word from the server for too long means that it is gone. */
  #schedule(): void {
    const { clock, walSenderTimeoutMs } = this.#options;
    const intervalMs =
      walSenderTimeoutMs > 0 ? Math.min(STATUS_INTERVAL_MS, walSenderTimeoutMs / 4) : STATUS_INTERVAL_MS;
    const deadAfterMs = Math.max(MIN_DEAD_AFTER_MS, walSenderTimeoutMs * 1.5);
    this.#cancelTimer = clock.after(intervalMs, () => {
      if (this.#ended) return;
      if (!this.#paused && clock.now() - this.#lastHeardMs > deadAfterMs) {
        this.#end(new Error(`no word from the server for ${Math.round(deadAfterMs / 1000)} s`));
        return;
      }
      this.#sendStatus(true);
      this.#schedule();
    });
  }

  #end(error: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#cancelTimer();
    this.#options.onEnd(toStreamError(error, this.#options));
  }

  async #stop(): Promise<void> {
    this.#cancelTimer();
    const socket = this.#copy?.stream;
    await within(
      this.#options.clock,
      this.#service.stop().catch(() => undefined),
      CLOSE_LIMIT_MS,
      undefined,
    );
    socket?.destroy();
    this.#client?.on('error', () => undefined);
    this.#copy?.stream.on('error', () => undefined);
    this.#service.removeAllListeners();
    this.#service.on('error', () => undefined);
  }
}

function toStreamError(error: unknown, options: StreamOptions): WaybillError {
  const text = error instanceof Error ? error.message : '';
  if (missingObject(error) === 'publication') {
    return new WaybillError(
      'WAYBILL_PUBLICATION_MISSING',
      `publication ${options.publication} did not exist at the position being decoded`,
      {
        hint: 'The relay makes the publication and the slot anew and reads the table: no row in it is lost, but those that applications deleted themselves before they were published.',
        cause: error,
      },
    );
  }
  if (sqlState(error) === '55000' || missingObject(error) === 'slot') {
    return new WaybillError('WAYBILL_SLOT_LOST', `slot ${options.slot}: ${text}`, { cause: error });
  }
  return toDatabaseError(error, 'the replication stream ended');
}

/** The standby status update, 34 bytes: 'r', written, flushed, applied, time, reply requested. */
function statusUpdate(written: Lsn, flushed: Lsn, micros: bigint, ping: boolean): Buffer {
  const message = Buffer.alloc(34);
  message.write('r', 0, 'latin1');
  message.writeBigUInt64BE(written, 1);
  message.writeBigUInt64BE(flushed, 9);
  message.writeBigUInt64BE(flushed, 17);
  message.writeBigInt64BE(micros, 25);
  message.writeUInt8(ping ? 1 : 0, 33);
  return message;
}
