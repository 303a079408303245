import { once } from 'node:events';
import { access, realpath } from 'node:fs/promises';
import { connect } from 'node:net';
import { dirname, join } from 'node:path';
import { until } from '../waiting.js';
import { Daemon, PortClash } from './daemon.js';
import type { Scratch } from './scratch.js';

/** Runs epmd, Erlang's port mapper, as a process of ours and not as a daemon of nobody's. */
export async function startPortMapper(scratch: Scratch, env: Record<string, string>, port: number): Promise<void> {
  const epmd = await Daemon.start(scratch, {
    command: await portMapperProgram(env.PATH ?? ''),
    args: ['-port', String(port), '-address', '127.0.0.1'],
    env,
    logFile: scratch.path('epmd.log'),
  });
  const ready = await until(async () => (epmd.ending === undefined ? await answers(port) : 'ended'), {
    what: `epmd on port ${port}`,
  });
  // It says nothing when the port is taken, and takes that for an epmd that runs already.
  if (ready === 'ended') throw new PortClash(`Tried: epmd -port ${port}: ${epmd.ending ?? ''}`);
}

async function portMapperProgram(path: string): Promise<string> {
  for (const folder of path.split(':').filter(Boolean)) {
    const program = join(folder, 'epmd');
    if (
      await access(program).then(
        () => true,
        () => false,
      )
    )
      return program;
    // Where only erl is in PATH, epmd lies beside the real one.
    const beside = join(dirname(await realpath(join(folder, 'erl')).catch(() => '/none/erl')), 'epmd');
    if (
      await access(beside).then(
        () => true,
        () => false,
      )
    )
      return beside;
  }
  throw new Error('epmd, which comes with Erlang, is not in PATH. Mend: apt-get install -y erlang-base');
}

/** True when a port mapper answers the request for all names; somebody else's server would only accept. */
async function answers(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  try {
    socket.write(Buffer.from([0, 1, 'n'.charCodeAt(0)]));
    const [answer] = (await once(socket, 'data', { signal: AbortSignal.timeout(500) })) as [Buffer];
    return answer.length >= 4 && answer.readUInt32BE(0) === port;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
