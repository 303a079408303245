import type { Config } from '../config/load.js';
import { readAdminToken } from './admin-token.js';
import type { LiveStatus } from './live-status.js';
import { ALL_IN_REACH } from './session-view.js';

const LIMIT_MS = 1_000;

/**
 * What the running process tells of itself at `admin.listen` of this configuration; undefined when nothing answers
 * there, or something else does. Never rejects: the process may run on another machine.
 */
export async function askLive({ admin, relay, database }: Config): Promise<LiveStatus | undefined> {
  const { listen, tokenFile } = admin;
  if (!listen || listen.port === 0) return undefined;
  try {
    const token = tokenFile === undefined ? undefined : await readAdminToken(tokenFile);
    const response = await fetch(`http://${reachable(listen.host)}:${listen.port}/status/live`, {
      headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
      redirect: 'error',
      signal: AbortSignal.timeout(LIMIT_MS),
    });
    const answer = (await response.json()) as Partial<LiveStatus>;
    // Another relay of this machine may have the port.
    const isOurs = answer.relay === relay.name && answer.schema === database.schema && answer.phase !== undefined;
    // One of an older version does not tell what it does not know.
    const outOfReach = { ...ALL_IN_REACH, ...answer.outOfReach };
    return response.ok && isOurs ? ({ ...answer, outOfReach } as LiveStatus) : undefined;
  } catch {
    return undefined;
  }
}

/** The address under which this machine itself reaches a listener. */
function reachable(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1';
  if (host === '::') return '[::1]';
  return host.includes(':') ? `[${host}]` : host;
}
