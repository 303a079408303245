import { AdminServer, type AdminSources } from '../admin/server.js';
import type { Config } from '../config/load.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { Logger } from '../telemetry/log.js';
import { readAdminToken } from './admin-token.js';

const PORT_RETRY_MS = 5_000;

/** The admin HTTP server as long as the process lives. */
export interface AdminService {
  stop(): Promise<void>;
}

/**
 * Serves until it is stopped. An address that cannot be had stops nobody: messages matter more than their metrics, and
 * whoever watches sees that nothing answers. It is tried again, so that the one of two processes that stays gets it.
 */
export function startAdminService(
  config: Config['admin'],
  sources: AdminSources,
  log: Logger,
  clock: Clock,
): AdminService {
  const { listen, tokenFile, hostNames } = config;
  const stopping = new AbortController();
  let server: AdminServer | undefined;
  const serving = (async () => {
    if (!listen) return;
    const token = tokenFile === undefined ? undefined : () => readAdminToken(tokenFile);
    for (let complained = false; !stopping.signal.aborted; complained = true) {
      try {
        const { host, port } = listen;
        server = await AdminServer.open(sources, { host, port, hostNames, token, log, clock });
        log.info({ address: listen.host, port: server.port }, 'admin HTTP listens');
        return;
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        const fields = { err: error, address: listen.host, port: listen.port, key: 'admin.listen' };
        if (!complained) {
          log.error(
            fields,
            `admin HTTP cannot listen (${code ?? 'error'}): no health, metrics and status from this process. The relay goes on, and it is tried again; set admin.listen to another port, or to off.`,
          );
        }
      }
      await pause(clock, PORT_RETRY_MS, stopping.signal);
    }
  })();
  return {
    async stop() {
      stopping.abort();
      await serving;
      await server?.close();
    },
  };
}
