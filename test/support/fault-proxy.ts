import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import type { Flow } from './proxied-lane.js';
import { ProxiedLink, type LinkAction } from './proxied-link.js';
import type { WireUnit } from './wire/units.js';

/**
 * What happens at a point: a fault, and whether the unit there still passes; bytes that its sender gets instead, as if
 * from the other end, which is cut off; or something of the test's own, before the unit passes.
 */
export type FaultAction = LinkAction | (() => void);

/** A name of wire/amqp-frames.ts or wire/postgres-messages.ts, or a look at the unit itself. */
export type FaultPoint = string | ((unit: WireUnit) => boolean);

/** Where the proxy leads. */
export interface FaultProxyOptions {
  targetPort: number;
  /** Default 127.0.0.1. */
  targetHost?: string;
}

/**
 * A TCP proxy between our client and a PostgreSQL or RabbitMQ server that understands both wire protocols, so that a
 * test can fail the network at an exact message. Connections are not decrypted: use it without TLS.
 */
export interface FaultProxy {
  readonly port: number;
  /** Connections that are open now. */
  readonly connections: number;
  /** The same URL, through the proxy. */
  url(base: string): string;
  /** Ends all connections; what was forwarded before still arrives. New ones are let in. */
  cut(): void;
  /** Nothing passes any more in any direction, on these and on new connections, and nobody is told: a black hole. */
  stall(): void;
  /** Ends every stall; what was held passes in order. */
  resume(): void;
  /** While on, new connections are reset at once. */
  refuse(on: boolean): void;
  /**
   * Acts at the nth unit from now (from 1) that matches the point, counted over all connections, and resolves with that
   * unit. The action takes the connection on which it came; with `scope: 'all'`, every one.
   *
   *     const cut = proxy.at('amqp.server.basic.ack', 37, 'cut-before');
   *
   * A published message is three or more frames (publish, header, body): to let it through whole, take the last body.
   */
  at(
    point: FaultPoint,
    nth: number,
    action: FaultAction,
    options?: { scope?: 'connection' | 'all' },
  ): Promise<WireUnit>;
  /** Acts at each unit that matches, until the end that is returned. */
  every(point: FaultPoint, action: FaultAction): () => void;
  /**
   * From now on each unit passes so many milliseconds after it came, in each direction, on these and on new connections:
   * latency, not a narrower line. 0 ends it.
   */
  delay(ms: number): void;
  /**
   * From now on bytes are handed on in bursts (gathered until the sender pauses, then many frames in one chunk), or
   * dribbled one by one. The default ends it.
   */
  flood(flow: Flow): void;
  /** Units with this name that have reached the proxy so far. */
  count(name: string): number;
  /** Shows every unit as it is about to pass; returns the end of it. */
  tap(listener: (unit: WireUnit) => void): () => void;
  close(): Promise<void>;
}

interface Trap {
  matches: (unit: WireUnit) => boolean;
  /** Matches until it acts; undefined acts at each of them. */
  left: number | undefined;
  action: FaultAction;
  all: boolean;
  spring: (unit: WireUnit) => void;
}

/** Starts a proxy on a free port of 127.0.0.1. */
export async function startFaultProxy(options: FaultProxyOptions): Promise<FaultProxy> {
  const links = new Set<ProxiedLink>();
  const listeners = new Set<(unit: WireUnit) => void>();
  const counts = new Map<string, number>();
  const traps = new Set<Trap>();
  let stalled = false;
  let refusing = false;
  let delayMs = 0;
  let flow: Flow = 'as-it-comes';

  const server = createServer({ noDelay: true, pauseOnConnect: true }, (client: Socket) => {
    if (refusing) {
      client.resetAndDestroy();
      return;
    }
    const link = new ProxiedLink(
      client,
      { port: options.targetPort, host: options.targetHost ?? '127.0.0.1' },
      inspect,
    );
    links.add(link);
    link.onceEnded(() => links.delete(link));
    link.shape(delayMs, flow);
    if (stalled) link.stall();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;

  /** Called by a link with each unit before it passes; says what to do there. */
  function inspect(unit: WireUnit, link: ProxiedLink): LinkAction | undefined {
    for (const name of unit.names) counts.set(name, (counts.get(name) ?? 0) + 1);
    for (const listener of listeners) listener(unit);
    for (const trap of traps) {
      if (!trap.matches(unit) || (trap.left !== undefined && --trap.left > 0)) continue;
      if (trap.left !== undefined) traps.delete(trap);
      const { action } = trap;
      if (trap.all && typeof action === 'string') {
        if (action.startsWith('stall')) stalled = true;
        for (const other of links) {
          if (other === link) continue;
          if (action.startsWith('cut')) other.cut();
          else other.stall();
        }
      }
      trap.spring(unit);
      if (typeof action !== 'function') return action;
      action();
    }
    return undefined;
  }

  const matcher = (point: FaultPoint): Trap['matches'] =>
    typeof point === 'string' ? (unit) => unit.names.includes(point) : point;
  const shape = (): void => {
    for (const link of links) link.shape(delayMs, flow);
  };

  return {
    port,
    get connections() {
      return links.size;
    },
    url(base) {
      const url = new URL(base);
      url.hostname = '127.0.0.1';
      url.port = String(port);
      return url.href;
    },
    cut() {
      for (const link of links) link.cut();
    },
    stall() {
      stalled = true;
      for (const link of links) link.stall();
    },
    resume() {
      stalled = false;
      for (const link of links) link.resume();
    },
    refuse(on) {
      refusing = on;
    },
    at(point, nth, action, { scope = 'connection' } = {}) {
      const matches = matcher(point);
      return new Promise((spring) => traps.add({ matches, left: nth, action, all: scope === 'all', spring }));
    },
    every(point, action) {
      const trap = { matches: matcher(point), left: undefined, action, all: false, spring: () => undefined };
      traps.add(trap);
      return () => void traps.delete(trap);
    },
    delay(ms) {
      delayMs = ms;
      shape();
    },
    flood(how) {
      flow = how;
      shape();
    },
    count: (name) => counts.get(name) ?? 0,
    tap(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    async close() {
      refusing = true;
      const closed = once(server, 'close');
      server.close();
      for (const link of links) link.destroy();
      await closed;
    },
  };
}
