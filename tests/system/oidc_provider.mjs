// An identity provider on loopback: node oidc_provider.mjs PORT SECRET BACK…
// Whoever logs in is whom they say, with an address at example.org, which is verified but for "unverified".
import Provider from 'oidc-provider';

const [port, secret, ...backs] = process.argv.slice(2);
const groups = { lead: ['fleet leads'], both: ['fleet leads', 'lookers'] };

const provider = new Provider(`http://localhost:${port}`, {
  clients: [
    {
      client_id: 'console',
      client_secret: secret,
      redirect_uris: backs,
      post_logout_redirect_uris: backs.map((back) => new URL('/login', back).href),
    },
  ],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
  scopes: ['openid', 'email', 'groups'],
  cookies: { keys: ['only a test'] },
  ttl: { IdToken: 60, AccessToken: 300, AuthorizationCode: 60, Interaction: 600, Session: 3600, Grant: 3600 },
  async findAccount(ctx, id) {
    return {
      accountId: id,
      claims: () => ({
        sub: id,
        email: `${id}@example.org`,
        email_verified: id !== 'unverified',
        groups: groups[id] ?? [],
      }),
    };
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
