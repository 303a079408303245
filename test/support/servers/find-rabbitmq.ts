import { execFile } from 'node:child_process';
import { access, readdir, realpath } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const MEND = 'apt-get install -y rabbitmq-server';

/**
 * Finds the folder with rabbitmq-server and rabbitmqctl. Where there is none and we are root on Debian or Ubuntu, their
 * package is installed, which is said on stderr.
 */
export async function findRabbit(): Promise<string> {
  const found = (await scriptsFolder()) ?? ((await installPackage()) ? await scriptsFolder() : undefined);
  if (found) return found;
  throw new Error(
    `RabbitMQ is not installed. Mend: ${MEND}   (macOS: brew install rabbitmq)\n` +
      'Tried: /usr/lib/rabbitmq/bin, rabbitmq-server in PATH, /opt/rabbitmq*/sbin, /opt/homebrew/sbin, /usr/local/sbin',
  );
}

async function scriptsFolder(): Promise<string | undefined> {
  // Why this order: what Debian puts into PATH is a wrapper that refuses root; the real scripts are in the first folder.
  const candidates = ['/usr/lib/rabbitmq/bin'];
  for (const folder of (process.env.PATH ?? '').split(':').filter(Boolean)) {
    const script = await realpath(join(folder, 'rabbitmq-server')).catch(() => undefined);
    if (script && !script.includes('script-wrapper')) candidates.push(dirname(script));
  }
  for (const entry of await readdir('/opt').catch(() => [])) {
    if (entry.startsWith('rabbitmq')) candidates.push(join('/opt', entry, 'sbin'));
  }
  candidates.push('/opt/homebrew/sbin', '/usr/local/sbin');
  for (const folder of candidates) {
    const scripts = ['rabbitmq-server', 'rabbitmqctl'].map((name) => access(join(folder, name)));
    if ((await Promise.allSettled(scripts)).every((result) => result.status === 'fulfilled')) return folder;
  }
  return undefined;
}

async function installPackage(): Promise<boolean> {
  const aptGet = '/usr/bin/apt-get';
  if (
    process.getuid?.() !== 0 ||
    !(await access(aptGet).then(
      () => true,
      () => false,
    ))
  )
    return false;
  process.stderr.write(`RabbitMQ is not installed here; installing the distribution's package: ${MEND}\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const apt = (...args: string[]) =>
    run(aptGet, ['-o', 'DPkg::Lock::Timeout=120', '-q', ...args], { env, maxBuffer: 1 << 26 });
  const install = () => apt('install', '-y', '--no-install-recommends', 'rabbitmq-server');
  try {
    await install().catch(async () => {
      await apt('update');
      return install();
    });
    return true;
  } catch (error) {
    const { stderr } = error as { stderr?: string };
    throw new Error(`RabbitMQ could not be installed. Mend: ${MEND}\nTried: that command: ${stderr ?? String(error)}`, {
      cause: error,
    });
  }
}
