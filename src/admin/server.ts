import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { within, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { createJsonRedactor } from '../telemetry/redact.js';
import { carriesToken, refusalOf } from './guard.js';
import { readinessOf, type PartHealth } from './health.js';

/** What the server shows; everything but `status` comes from memory. */
export interface AdminSources {
  health: () => PartHealth[];
  /** In seconds, the longest of the last moments. */
  eventLoopLag: () => number;
  metrics: { contentType: string; show: () => Promise<string> };
  /** What is known now, from memory. */
  live: () => object;
  /** What `waybill status --json` shows; asks the servers, within limits of its own. */
  status: () => Promise<object>;
}

export interface AdminOptions {
  host: string;
  /** 0 takes a free one. */
  port: number;
  hostNames: readonly string[];
  /** Reads the token that /status asks for; undefined: it asks for none. Rejects when it cannot be read. */
  token: (() => Promise<string>) | undefined;
  log: Logger;
  clock: Clock;
}

const REQUEST_LIMIT_MS = 10_000;
const HEADERS_LIMIT_MS = 5_000;
const HEADER_BYTES = 8 * 1024;
const MOST_CONNECTIONS = 64;
const CLOSE_LIMIT_MS = 1_000;
/** On every answer: nothing of it is kept, framed, or taken for a page. */
const HEADERS = {
  'cache-control': 'no-store',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
} as const;

interface Answer {
  status: number;
  contentType?: string;
  body: string;
  headers?: Readonly<Record<string, string>>;
}

/**
 * Health, metrics and status over HTTP, without TLS: for probes and scrapers beside the process.
 *
 * | path         | token | answers                                                                    |
 * |--------------|-------|----------------------------------------------------------------------------|
 * | /livez       | no    | 200 while the event loop turns                                              |
 * | /readyz      | no    | 200 or 503, with the reason                                                 |
 * | /metrics     | no    | Prometheus' text format                                                     |
 * | /status      | yes   | all of `waybill status --json`, with the live numbers                       |
 * | /status/live | yes   | the live numbers alone                                                      |
 */
export class AdminServer {
  readonly #server: Server;
  readonly #sources: AdminSources;
  readonly #options: AdminOptions;
  readonly #hostNames: ReadonlySet<string>;
  #status: Promise<object> | undefined;

  private constructor(sources: AdminSources, options: AdminOptions) {
    this.#sources = sources;
    this.#options = options;
    this.#hostNames = new Set(options.hostNames);
    this.#server = createServer(
      {
        requestTimeout: REQUEST_LIMIT_MS,
        headersTimeout: HEADERS_LIMIT_MS,
        keepAliveTimeout: REQUEST_LIMIT_MS,
        connectionsCheckingInterval: 1_000,
        maxHeaderSize: HEADER_BYTES,
      },
      (request, response) => {
        this.#handle(request, response).catch((error: unknown) => {
          options.log.error({ err: error }, 'the admin HTTP server could not answer');
          response.destroy();
        });
      },
    );
    this.#server.maxConnections = MOST_CONNECTIONS;
  }

  /** Listens; rejects with node's error when the address cannot be had. */
  static async open(sources: AdminSources, options: AdminOptions): Promise<AdminServer> {
    const admin = new AdminServer(sources, options);
    await new Promise<void>((resolve, reject) => {
      admin.#server.once('error', reject);
      admin.#server.listen({ host: options.host, port: options.port, exclusive: true }, () => {
        admin.#server.removeListener('error', reject);
        resolve();
      });
    });
    // Such as no file descriptor for a new connection: this one is lost, the server stays (F115).
    admin.#server.on('error', (error) => options.log.warn({ err: error }, 'the admin HTTP server'));
    return admin;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Takes no more requests; what is being answered has a second. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    await within(this.#options.clock, closed, CLOSE_LIMIT_MS, undefined);
    this.#server.closeAllConnections();
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const refusal = refusalOf(request, this.#hostNames);
    const answer = refusal ? refused(refusal.status, refusal.text) : await this.#answer(request);
    // A body that nobody reads must not be waited for.
    if (refusal) response.shouldKeepAlive = false;
    const body = Buffer.from(answer.body);
    response.writeHead(answer.status, {
      ...HEADERS,
      ...answer.headers,
      'content-type': answer.contentType ?? 'application/json; charset=utf-8',
      'content-length': body.length,
    });
    response.end(request.method === 'HEAD' ? undefined : body);
  }

  async #answer(request: IncomingMessage): Promise<Answer> {
    const { health, eventLoopLag, metrics, live } = this.#sources;
    switch (request.url?.split('?', 1)[0]) {
      case '/livez':
        return json(200, { alive: true, eventLoopLagSeconds: eventLoopLag() });
      case '/readyz': {
        const readiness = readinessOf(health());
        return json(readiness.ready ? 200 : 503, readiness);
      }
      case '/metrics':
        return { status: 200, contentType: metrics.contentType, body: await metrics.show() };
      case '/status/live':
        return (await this.#unauthorized(request)) ?? json(200, live());
      case '/status':
        return (await this.#unauthorized(request)) ?? this.#wholeStatus();
      default:
        return refused(404, 'there are /livez, /readyz, /metrics, /status and /status/live');
    }
  }

  async #unauthorized(request: IncomingMessage): Promise<Answer | undefined> {
    const { token, log } = this.#options;
    if (!token) return undefined;
    let known: string;
    try {
      known = await token();
    } catch (error) {
      log.warn({ err: error }, 'the token of admin.tokenFile cannot be read; /status is refused');
      return refused(503, 'the token file cannot be read');
    }
    if (carriesToken(request, known)) return undefined;
    return {
      ...refused(401, 'the token of admin.tokenFile is missing or wrong'),
      headers: { 'www-authenticate': 'Bearer' },
    };
  }

  /** Whoever asks while somebody else's answer is being made gets that one: asking often does not ask the servers often. */
  async #wholeStatus(): Promise<Answer> {
    this.#status ??= this.#sources.status().finally(() => (this.#status = undefined));
    try {
      return json(200, await this.#status);
    } catch (error) {
      this.#options.log.error({ err: error }, 'the status could not be made');
      return refused(500, 'the status could not be made; the log says why');
    }
  }
}

const redact = createJsonRedactor();

function json(status: number, value: object): Answer {
  return { status, body: `${redact(value, 2)}\n` };
}

function refused(status: number, error: string): Answer {
  return json(status, { error });
}
