import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** What reaches a private node with rabbitmqctl; plain data, so that it can be handed to another process. */
export interface RabbitNode {
  scripts: string;
  env: Record<string, string>;
}

/** Administration of a broker. */
export interface RabbitControl {
  /** Makes a virtual host on which the user may do everything. */
  addVhost(name: string, user: string): Promise<void>;
  /** Deletes a virtual host with all in it; one that does not exist is fine. */
  deleteVhost(name: string): Promise<void>;
  /** Sets a policy; the definition is RabbitMQ's, for example { 'max-length': 5, overflow: 'reject-publish' }. */
  setPolicy(vhost: string, name: string, pattern: string, definition: object, applyTo?: PolicyTarget): Promise<void>;
  /** Runs rabbitmqctl and resolves with its output. */
  ctl(...args: string[]): Promise<string>;
}

/** What a policy applies to. */
export type PolicyTarget = 'all' | 'queues' | 'exchanges';

/** Control by rabbitmqctl (about 0.25 s a command on an idle machine). */
export function ctlControl(node: RabbitNode): RabbitControl {
  const ctl = async (...args: string[]): Promise<string> => {
    try {
      const { stdout } = await run(join(node.scripts, 'rabbitmqctl'), ['--silent', ...args], {
        env: node.env,
        cwd: node.env.HOME ?? '/',
        maxBuffer: 1 << 26,
      });
      return stdout.trimEnd();
    } catch (error) {
      const { stderr, stdout } = error as { stderr?: string; stdout?: string };
      throw new Error(`rabbitmqctl ${args.join(' ')} failed: ${stderr ?? ''}${stdout ?? String(error)}`, {
        cause: error,
      });
    }
  };
  return {
    ctl,
    async addVhost(name, user) {
      // Why eval: one command where add_vhost and set_permissions would be two.
      const [vhost, who] = [binary(name), binary(user)];
      await ctl(
        'eval',
        `ok = rabbit_vhost:add(${vhost}, <<"test">>), ok = rabbit_auth_backend_internal:set_permissions(` +
          `${who}, ${vhost}, <<".*">>, <<".*">>, <<".*">>, <<"test">>).`,
      );
    },
    async deleteVhost(name) {
      await ctl(
        'eval',
        `case rabbit_vhost:exists(V = ${binary(name)}) of true -> rabbit_vhost:delete(V, <<"test">>); _ -> ok end.`,
      );
    },
    async setPolicy(vhost, name, pattern, definition, applyTo = 'all') {
      await ctl('set_policy', '-p', vhost, '--apply-to', applyTo, name, pattern, JSON.stringify(definition));
    },
  };
}

/** Control by the management plugin's HTTP interface; the URL carries the credentials. */
export function managementControl(base: string): RabbitControl {
  const call = async (method: string, path: string, body?: unknown): Promise<void> => {
    const url = new URL(base);
    const credentials = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
    const response = await fetch(new URL(`api/${path}`, `${url.origin}/`), {
      method,
      headers: {
        authorization: `Basic ${Buffer.from(credentials).toString('base64')}`,
        'content-type': 'application/json',
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok && !(method === 'DELETE' && response.status === 404)) {
      throw new Error(`${method} ${path} on ${url.host} failed: ${response.status} ${text}`);
    }
  };
  const at = (...parts: string[]): string => parts.map(encodeURIComponent).join('/');
  return {
    async addVhost(name, user) {
      await call('PUT', at('vhosts', name));
      await call('PUT', at('permissions', name, user), { configure: '.*', write: '.*', read: '.*' });
    },
    deleteVhost: (name) => call('DELETE', at('vhosts', name)),
    setPolicy: (vhost, name, pattern, definition, applyTo = 'all') =>
      call('PUT', at('policies', vhost, name), { pattern, definition, 'apply-to': applyTo }),
    ctl: () => Promise.reject(new Error("rabbitmqctl needs a RabbitMQ of one's own: startRabbit({ own: true })")),
  };
}

/** Control of a broker of which only the AMQP URL is known: each act says what is missing. */
export function noControl(): RabbitControl {
  const refuse = (): Promise<never> =>
    Promise.reject(
      new Error(
        'This broker is borrowed and cannot be administered. Set WAYBILL_TEST_BROKER_MANAGEMENT_URL ' +
          '(http://user:password@host:15672), or unset WAYBILL_TEST_BROKER_URL to get a private broker.',
      ),
    );
  return { addVhost: refuse, deleteVhost: refuse, setPolicy: refuse, ctl: refuse };
}

function binary(text: string): string {
  if (!/^[\w./-]+$/.test(text)) throw new Error(`Not a plain name: ${text}`);
  return `<<"${text}">>`;
}
