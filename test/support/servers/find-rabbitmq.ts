import { execFile } from 'node:child_process';
import { access, readdir, realpath } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const MEND = 'apt-get install -y rabbitmq-server';

/**
 * Finds the folder with rabbitmq-server and rabbitmqctl: the first in PATH, which is how another version is run, else in
 * the usual places. Where there is none and we are root on Debian or Ubuntu, their package is installed, which is said on
 * stderr.
 */
export async function findRabbit(): Promise<string> {
  const found = (await scriptsFolder()) ?? ((await installPackage()) ? await scriptsFolder() : undefined);
  if (found) return found;
  throw new Error(
    `RabbitMQ is not installed. Mend: ${MEND}   (macOS: brew install rabbitmq)\n` +
      'Tried: rabbitmq-server in PATH, /usr/lib/rabbitmq/bin, /opt/rabbitmq*/sbin, /opt/homebrew/sbin, /usr/local/sbin',
  );
}

/**
 * Whether RabbitMQ has a plugin that could be enabled: in the folders of RABBITMQ_PLUGINS_DIR, or in its own. Why by name:
 * `rabbitmq-plugins list` wants a port mapper, and starts one that outlives us.
 */
export async function hasPlugin(name: string): Promise<boolean> {
  const home = dirname(await findRabbit());
  const releases = await readdir(join(home, 'lib')).catch(() => []);
  const folders = [
    ...(process.env.RABBITMQ_PLUGINS_DIR ?? '').split(':').filter(Boolean),
    ...[home, ...releases.map((release) => join(home, 'lib', release))].map((folder) => join(folder, 'plugins')),
  ];
  const entries = await Promise.all(folders.map((folder) => readdir(folder).catch(() => [])));
  return entries.flat().some((entry) => entry.startsWith(`${name}-`));
}

async function scriptsFolder(): Promise<string | undefined> {
  const candidates: string[] = [];
  for (const folder of (process.env.PATH ?? '').split(':').filter(Boolean)) {
    const script = await realpath(join(folder, 'rabbitmq-server')).catch(() => undefined);
    // Why: what Debian puts into PATH is a wrapper that refuses root; the real scripts are in the folder below.
    if (script && !script.includes('script-wrapper')) candidates.push(dirname(script));
  }
  candidates.push('/usr/lib/rabbitmq/bin');
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
