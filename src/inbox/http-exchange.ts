import {
  request as plainRequest,
  type Agent as PlainAgent,
  type IncomingMessage,
  type RequestOptions,
} from 'node:http';
import { request as tlsRequest, type Agent as TlsAgent } from 'node:https';
import type { ConnectionOptions } from 'node:tls';
import { WaybillError } from '../core/errors.js';
import type { HttpFailure } from '../core/http-verdict.js';
import type { Clock } from '../runtime/clock.js';

/** One POST. */
export interface Exchange {
  url: URL;
  headers: Record<string, string>;
  body: Buffer;
  /** The whole exchange, from connecting to the end of the answer, in milliseconds. */
  timeoutMs: number;
  agent: PlainAgent | TlsAgent;
  lookup: RequestOptions['lookup'];
  /** For https: whom to trust. */
  tls: ConnectionOptions;
  clock: Clock;
}

/** What came back. The body is cut at MAX_ANSWER_BYTES. */
export interface RawAnswer {
  status: number;
  retryAfter: string | undefined;
  date: string | undefined;
  body: Buffer;
}

const MAX_ANSWER_BYTES = 65_536;
const MAX_ANSWER_HEADER_BYTES = 16_384;

/**
 * Sends one request and gives its answer or why there is none; follows nothing. A 2xx counts only when its whole answer, or
 * MAX_ANSWER_BYTES of it, came: half of one is a handler that died at its work. Any other status stands as soon as it is
 * there. Rejects only when `signal` aborts, with WAYBILL_STOPPED.
 */
export async function exchange(options: Exchange, signal: AbortSignal): Promise<RawAnswer | HttpFailure> {
  const startMs = options.clock.now();
  const first = await new Attempt(options, signal).outcome;
  if (first !== 'idle-connection-gone') return first;
  // A kept connection that the handler closed while it was idle, as it may at any time: once again on a new one.
  const timeoutMs = startMs + options.timeoutMs - options.clock.now();
  const second = await new Attempt({ ...options, agent: undefined, timeoutMs }, signal).outcome;
  return second === 'idle-connection-gone' ? { kind: 'interrupted', error: 'the connection was closed' } : second;
}

type Outcome = RawAnswer | HttpFailure | 'idle-connection-gone';

/** One request on one connection, up to its first final event. */
class Attempt {
  readonly outcome: Promise<Outcome>;
  readonly #request: ReturnType<typeof plainRequest>;
  /** Whether something of the message may have been sent. */
  #connected = false;
  #response: IncomingMessage | undefined;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;
  #settle: (outcome: Outcome | WaybillError) => void = () => undefined;

  constructor(
    {
      url,
      headers,
      body,
      timeoutMs,
      agent,
      lookup,
      tls,
      clock,
    }: Omit<Exchange, 'agent'> & {
      agent: Exchange['agent'] | undefined;
    },
    signal: AbortSignal,
  ) {
    const isTls = url.protocol === 'https:';
    // First: when it throws, nothing is left behind that would speak of it later.
    const options: RequestOptions = {
      method: 'POST',
      headers,
      agent: agent ?? false,
      lookup,
      maxHeaderSize: MAX_ANSWER_HEADER_BYTES,
    };
    this.#request = isTls ? tlsRequest(url, { ...options, ...tls }) : plainRequest(url, options);
    this.outcome = new Promise((resolve, reject) => {
      const cancel = clock.after(timeoutMs, () => this.#timedOut());
      const stop = (): void => this.#settle(new WaybillError('WAYBILL_STOPPED', 'stopping'));
      this.#settle = (outcome) => {
        this.#settle = () => undefined;
        cancel();
        signal.removeEventListener('abort', stop);
        if (outcome instanceof WaybillError) reject(outcome);
        else resolve(outcome);
        // What is complete leaves its connection to the next one; everything else ends with it.
        if (!this.#response?.complete) this.#request.destroy();
      };
      signal.addEventListener('abort', stop, { once: true });
    });
    this.#request.on('socket', (socket) => {
      if (this.#request.reusedSocket) this.#connected = true;
      else socket.once(isTls ? 'secureConnect' : 'connect', () => (this.#connected = true));
    });
    this.#request.on('response', (response) => this.#read(response));
    this.#request.on('upgrade', (response: IncomingMessage) => this.#settle(this.#answer(response)));
    this.#request.on('error', (error) => this.#failed(error));
    if (signal.aborted) this.#settle(new WaybillError('WAYBILL_STOPPED', 'stopping'));
    this.#request.end(body);
  }

  #read(response: IncomingMessage): void {
    this.#response = response;
    response.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk.subarray(0, MAX_ANSWER_BYTES - this.#bytes));
      this.#bytes += chunk.length;
      if (this.#bytes >= MAX_ANSWER_BYTES) this.#settle(this.#answer(response));
    });
    response.on('end', () => this.#settle(this.#answer(response)));
    // The error of a response cut short says less than the event that follows it.
    response.on('error', () => undefined);
    response.on('close', () => this.#cutShort({ kind: 'interrupted', error: 'the answer broke off' }));
  }

  #timedOut(): void {
    if (!this.#connected) this.#settle({ kind: 'unreachable', error: 'no connection in time' });
    else this.#cutShort({ kind: 'timeout', error: 'no whole answer in time' });
  }

  /** The status is there, or not, and no more will come. */
  #cutShort(failure: HttpFailure): void {
    const response = this.#response;
    const status = response?.statusCode ?? 0;
    const stands = response !== undefined && (status < 200 || status > 299);
    this.#settle(stands ? this.#answer(response) : failure);
  }

  #failed(error: NodeJS.ErrnoException): void {
    const { code = '', message } = error;
    // What follows an answer that has begun is told by its end.
    if (this.#response) return;
    if (code.startsWith('HPE_')) {
      this.#settle({ kind: 'not-http', error: `the answer is not HTTP (${code})` });
    } else if (!this.#connected || code.startsWith('ERR_SSL_') || code.startsWith('ERR_TLS_')) {
      this.#settle({ kind: 'unreachable', error: describe(error) });
    } else if (this.#request.reusedSocket && (code === 'ECONNRESET' || code === 'EPIPE')) {
      this.#settle('idle-connection-gone');
    } else {
      this.#settle({ kind: 'interrupted', error: `the connection broke: ${code || message}` });
    }
  }

  #answer(response: IncomingMessage): RawAnswer {
    return {
      status: response.statusCode ?? 0,
      retryAfter: response.headers['retry-after'],
      date: response.headers.date,
      body: Buffer.concat(this.#chunks),
    };
  }
}

/** Of several addresses that were tried, each with its reason. */
function describe(error: NodeJS.ErrnoException): string {
  const errors = error instanceof AggregateError ? (error.errors as NodeJS.ErrnoException[]) : [error];
  return errors.map(({ message, code }) => message || code || 'no connection').join('; ');
}
