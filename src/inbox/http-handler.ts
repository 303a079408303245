import { Agent as PlainAgent } from 'node:http';
import { Agent as TlsAgent } from 'node:https';
import { createSecureContext, type ConnectionOptions } from 'node:tls';
import { isWaybillError, WaybillError } from '../core/errors.js';
import { printable, verdictOfAnswer, verdictOfFailure } from '../core/http-verdict.js';
import { retryAfterMs } from '../core/retry-after.js';
import { allowList, type AllowList } from '../core/target.js';
import { TokenBucket, type Rate } from '../core/token-bucket.js';
import type { Verdict } from '../core/verdict.js';
import { parseWebhookSecrets } from '../core/webhook-signature.js';
import { pause, type Clock } from '../runtime/clock.js';
import { Permits } from '../runtime/permits.js';
import { exchange } from './http-exchange.js';
import { requestHeaders } from './http-headers.js';
import { guardedLookup, literalRefusal, systemResolve, type Resolve } from './http-lookup.js';
import type { InboxMessage, MessageHandler } from './ports.js';

export interface HttpHandlerOptions {
  url: string;
  /** The whole of one attempt, from connecting to the end of the answer. */
  timeoutMs: number;
  /** Most requests at once, and most connections kept. */
  concurrency: number;
  /** Undefined: as fast as the handler answers. */
  rate: Rate | undefined;
  /** Hosts by name and networks, besides this machine. */
  allow: readonly string[];
  /** The longest delay that an answer may ask for. */
  retryAfterCapMs: number;
  /** Reads the secrets, at each attempt so that they can be replaced; undefined: nothing is signed. May throw. */
  secrets: (() => string) | undefined;
  /** For https: whom to trust, read at each attempt. May throw. */
  tls: () => ConnectionOptions;
  /** Milliseconds since 1970, for signatures and for a Retry-After that is a date. */
  unixMs: () => number;
  clock: Clock;
  /** Tests put their own here. */
  resolve?: Resolve;
}

/** Kept connections are let go when idle for less than the five seconds after which many servers close them. */
const IDLE_MS = 4_000;
/** Messages that must wait longer than this for their turn are left in the table. */
const RATE_SPAN_MS = 60_000;
const RESULT_CHARACTERS = 1_024;
const ERROR_CHARACTERS = 300;

/**
 * Hands messages to an application over HTTP: one POST a message, the body as it was received (design 4.3).
 *
 *   permit -> token -> secrets -> POST -> answer -> verdict
 *
 * At least once: an answer that is lost makes the message come again, under the same Idempotency-Key. Redirects are not
 * followed, and no address is reached but this machine's and those of the allow-list (security.md). What concerns the
 * consumer and not the message is the verdict `broken`; the breaker of the consumer decides what follows.
 */
export class HttpHandler implements MessageHandler {
  readonly #options: HttpHandlerOptions;
  readonly #url: URL;
  readonly #agent: PlainAgent | TlsAgent;
  readonly #allow: AllowList;
  readonly #lookup: ReturnType<typeof guardedLookup>;
  readonly #permits: Permits;
  readonly #bucket: TokenBucket | undefined;

  constructor(options: HttpHandlerOptions) {
    this.#options = options;
    this.#url = new URL(options.url);
    this.#allow = allowList(options.allow);
    this.#lookup = guardedLookup(options.resolve ?? systemResolve, this.#allow);
    this.#permits = new Permits(options.concurrency);
    this.#bucket = options.rate && new TokenBucket(options.rate);
    const kept = { keepAlive: true, maxSockets: options.concurrency, timeout: IDLE_MS };
    this.#agent = this.#url.protocol === 'https:' ? new TlsAgent(kept) : new PlainAgent(kept);
  }

  /** Messages that are worth being handed over at once: no more than the rate lets go soon, because each holds a lease. */
  get concurrency(): number {
    const { concurrency, rate } = this.#options;
    return rate
      ? Math.min(concurrency, Math.max(1, Math.floor((RATE_SPAN_MS * rate.count) / rate.perMs)))
      : concurrency;
  }

  /** The longest that `concurrency` messages handed over together take, in milliseconds: leases must be longer. */
  get longestMs(): number {
    const { timeoutMs, rate } = this.#options;
    return timeoutMs + (rate ? (this.concurrency * rate.perMs) / rate.count : 0);
  }

  /** Rejects only with WAYBILL_STOPPED, when `signal` aborts; the application may have seen the message then. */
  async handle(message: InboxMessage, signal: AbortSignal): Promise<Verdict> {
    const release = await this.#permits.acquire(signal);
    try {
      await this.#turn(signal);
      return await this.#attempt(message, signal);
    } finally {
      release();
    }
  }

  /** Lets go of the connections that are kept. */
  close(): void {
    this.#agent.destroy();
  }

  async #turn(signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    const waitMs = this.#bucket?.take(clock.now()) ?? 0;
    if (waitMs > 0) await pause(clock, waitMs, signal);
    if (!signal.aborted) return;
    this.#bucket?.giveBack();
    throw new WaybillError('WAYBILL_STOPPED', 'stopping');
  }

  async #attempt(message: InboxMessage, signal: AbortSignal): Promise<Verdict> {
    const { clock, timeoutMs, unixMs, retryAfterCapMs } = this.#options;
    const prepared = this.#prepare();
    if ('error' in prepared) return { kind: 'broken', error: prepared.error };
    const { keys, tls } = prepared;
    const raw = await exchange(
      {
        url: this.#url,
        headers: requestHeaders(message, { keys, unixSeconds: Math.floor(unixMs() / 1_000) }),
        body: message.body,
        timeoutMs,
        agent: this.#agent,
        lookup: this.#lookup,
        tls,
        clock,
      },
      signal,
    );
    if ('kind' in raw) {
      const limit = raw.kind === 'timeout' ? ` (${timeoutMs} ms)` : '';
      return verdictOfFailure({ kind: raw.kind, error: `${this.#url.host}: ${raw.error}${limit}` });
    }
    const isDone = raw.status >= 200 && raw.status < 300;
    return verdictOfAnswer({
      status: raw.status,
      text: printable(raw.body, isDone ? RESULT_CHARACTERS : ERROR_CHARACTERS),
      retryInMs: retryAfterMs(raw.retryAfter, { date: raw.date, unixMs: unixMs(), capMs: retryAfterCapMs }),
    });
  }

  /** What must hold before anything is sent; a wrong file or address is the consumer's fault, and heals when mended. */
  #prepare(): { keys: readonly Buffer[]; tls: ConnectionOptions } | { error: string } {
    const refused = literalRefusal(this.#url, this.#allow);
    if (refused !== undefined) return { error: refused };
    try {
      const secrets = this.#options.secrets && parseWebhookSecrets(this.#options.secrets());
      if (secrets && 'problem' in secrets) return { error: `the secret file of the handler: ${secrets.problem}` };
      const tls = this.#url.protocol === 'https:' ? this.#options.tls() : {};
      const unusable = tlsProblem(tls);
      if (unusable !== undefined) return { error: `the certificate files of the handler (tls): ${unusable}` };
      return { keys: secrets?.keys ?? [], tls };
    } catch (error) {
      if (isWaybillError(error)) return { error: error.message };
      throw error;
    }
  }
}

/** Why before the request: a pool of connections would throw it at nobody, once a queued request gets its turn. */
function tlsProblem(tls: ConnectionOptions): string | undefined {
  try {
    createSecureContext(tls);
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
