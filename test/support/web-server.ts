import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTlsServer, type ServerOptions } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';

/** A request as it arrived, whole. */
export interface Received {
  method: string;
  path: string;
  headers: IncomingHttpHeaders;
  body: Buffer;
  /** The n-th connection that the server saw, from 1. */
  connection: number;
}

export type Answer = (received: Received, response: ServerResponse, request: IncomingMessage) => void;

/** An application's HTTP server on a port of its own; `answer` may be changed at any time. */
export class WebServer {
  readonly received: Received[] = [];
  answer: Answer = (_, response) => response.end();
  /** Connections so far. */
  connections = 0;
  readonly #sockets = new Map<Socket, number>();
  readonly #server;
  readonly #scheme: string;

  private constructor(tls: ServerOptions | undefined) {
    this.#scheme = tls ? 'https' : 'http';
    const listen = (request: IncomingMessage, response: ServerResponse): void => this.#read(request, response);
    this.#server = tls ? createTlsServer(tls, listen) : createServer(listen);
    this.#server.on(tls ? 'secureConnection' : 'connection', (socket: Socket) => {
      this.connections += 1;
      this.#sockets.set(socket, this.connections);
      socket.on('close', () => this.#sockets.delete(socket));
      socket.on('error', () => undefined);
    });
  }

  static async start(tls?: ServerOptions, port = 0): Promise<WebServer> {
    const server = new WebServer(tls);
    server.#server.listen(port, '127.0.0.1');
    await once(server.#server, 'listening');
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  url(host = '127.0.0.1'): string {
    return `${this.#scheme}://${host}:${this.port}/events`;
  }

  get openConnections(): number {
    return this.#sockets.size;
  }

  /** Closes connections that nobody uses now, as a server does with idle ones. */
  dropConnections(): void {
    for (const socket of this.#sockets.keys()) socket.destroy();
  }

  async stop(): Promise<void> {
    this.dropConnections();
    const closed = once(this.#server, 'close');
    this.#server.close();
    await closed;
  }

  #read(request: IncomingMessage, response: ServerResponse): void {
    const chunks: Buffer[] = [];
    request.on('error', () => undefined);
    response.on('error', () => undefined);
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const received: Received = {
        method: request.method ?? '',
        path: request.url ?? '',
        headers: request.headers,
        body: Buffer.concat(chunks),
        connection: this.#sockets.get(request.socket) ?? 0,
      };
      this.received.push(received);
      this.answer(received, response, request);
    });
  }
}
