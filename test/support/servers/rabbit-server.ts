import type { PolicyTarget, RabbitControl, RabbitNode } from './rabbit-control.js';

/** A RabbitMQ node for tests, private or borrowed. The faults need a private one. */
export interface RabbitServer {
  /** True when this process started the node and may do anything to it. */
  readonly private: boolean;
  readonly host: string;
  readonly port: number;
  readonly user: string;
  /** How to reach a private node with rabbitmqctl from another process; undefined when it is borrowed without that. */
  readonly node: RabbitNode | undefined;
  /** A connection URL; the virtual host defaults to the one of the URL that was given, "/" on a private node. */
  url(vhost?: string): string;
  addVhost(name: string): Promise<void>;
  deleteVhost(name: string): Promise<void>;
  setPolicy(vhost: string, name: string, pattern: string, definition: object, applyTo?: PolicyTarget): Promise<void>;
  ctl(...args: string[]): Promise<string>;
  /** Starts again on the same data and port after `stop` or `kill9`. */
  start(): Promise<void>;
  /** Stops the node in order and resolves with the milliseconds that took. */
  stop(): Promise<number>;
  /**
   * Writes to disk what the node knows of its quorum queues. Why: RabbitMQ keeps their names in a file that it flushes
   * later (issue 15725 of rabbitmq-server); killed before that, it starts the queue empty and without a leader for ever.
   */
  flushDeclarations(): Promise<void>;
  /** SIGKILL to the node. */
  kill9(): Promise<void>;
  /** SIGSTOP to the node: connections stay open and nothing answers. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** Raises or clears the memory alarm, which blocks publishers, until it is changed again or the node restarts. */
  alarm(on: boolean): Promise<void>;
  /** Stops the node at once and removes its folder. */
  close(): Promise<void>;
}

/** The part of a node handle that needs nothing but its URL and a way to administer it. */
export class RabbitUrls {
  readonly host: string;
  readonly port: number;
  readonly user: string;

  constructor(
    private readonly base: URL,
    protected readonly control: RabbitControl,
    readonly node: RabbitNode | undefined,
  ) {
    this.host = base.hostname;
    this.port = Number(base.port || 5672);
    this.user = decodeURIComponent(base.username);
  }

  url(vhost?: string): string {
    const url = new URL(this.base);
    if (vhost !== undefined) url.pathname = `/${encodeURIComponent(vhost)}`;
    return url.href;
  }

  addVhost(name: string): Promise<void> {
    return this.control.addVhost(name, this.user);
  }

  deleteVhost(name: string): Promise<void> {
    return this.control.deleteVhost(name);
  }

  setPolicy(vhost: string, name: string, pattern: string, definition: object, applyTo?: PolicyTarget): Promise<void> {
    return this.control.setPolicy(vhost, name, pattern, definition, applyTo);
  }

  ctl(...args: string[]): Promise<string> {
    return this.control.ctl(...args);
  }
}
