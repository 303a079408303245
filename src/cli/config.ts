import type { Command } from 'commander';
import { configReference } from '../config/reference.js';
import type { Cli } from './program.js';

export function registerConfig(program: Command, cli: Cli): void {
  const config = program.command('config').description('Show and check the configuration.');
  config
    .command('reference')
    .description('Print every key with its unit and default, as markdown.')
    .action(() => cli.context.out(configReference()));
  config
    .command('check')
    .description('Read the configuration and report every problem; connects to nothing.')
    .action(() => {
      cli.configuration.whole();
      cli.context.out('The configuration is valid.\n');
    });
}
