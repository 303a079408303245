import type { Config } from '../config/load.js';
import type { Logger } from '../telemetry/log.js';

/** A running relay. */
export interface RelayService {
  /** Resolves when it has ended after stop(); rejects when it cannot go on. */
  stopped: Promise<void>;
  /** Takes no more in, waits for confirms, settles, lets go of its locks. Idempotent. */
  stop(): Promise<'drained' | 'incomplete'>;
}

/** Starts the relay; resolves when it has begun to work or stands by. */
export function startRelayService(config: Config, logger: Logger): Promise<RelayService> {
  logger.debug({ relay: config.relay.name }, 'Starting the relay.');
  return Promise.reject(new Error('the relay is not built yet'));
}
