"""Generates random fake secrets in the formats that providers document, so that no real-looking key is committed."""

from __future__ import annotations

import base64
import random
import re
import string

ALPHABETS = {
    "A": string.ascii_letters + string.digits,
    "U": string.ascii_uppercase + string.digits,
    "L": string.ascii_lowercase + string.digits,
    "H": "0123456789abcdef",
    "W": string.ascii_letters + string.digits + "_-",
    "B": string.ascii_letters + string.digits + "+/",
    "D": string.digits,
    "2": string.ascii_uppercase + "234567",
}

# {H32} stands for 32 random characters of the alphabet H.
FORMATS = {
    "AWS access key": "AKIA{216}",
    "AWS temporary key": "ASIA{216}",
    "Alibaba": "LTAI5t{A18}",
    "Azure storage": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={B86}==;EndpointSuffix=core.windows.net",
    "Azure AD": "{A3}8Q~{A34}",
    "Databricks": "dapi{H32}",
    "DigitalOcean": "dop_v1_{H64}",
    "Google API": "AIzaSy{W33}",
    "Google OAuth": "GOCSPX-{W28}",
    "Heroku": "HRKU-AA{W58}",
    "Netlify": "nfp_{A36}",
    "PlanetScale": "pscale_tkn_{W43}",
    "Supabase": "sbp_{H40}",
    "Tencent": "AKID{A32}",
    "Artifactory": "AKCp{A69}",
    "Atlassian": "ATATT3xFfGF0{W170}={H8}",
    "Buildkite": "bkua_{H40}",
    "Clojars": "CLOJARS_{L60}",
    "crates.io": "cio{A32}",
    "Docker": "dckr_pat_{W27}",
    "GitHub": "ghp_{A36}",
    "GitHub app": "ghs_{A36}",
    "GitHub fine-grained": "github_pat_{A22}_{A59}",
    "GitLab": "glpat-{W20}",
    "GitLab runner": "glrt-{W20}",
    "npm": "npm_{A36}",
    "NuGet": "oy2{L43}",
    "Postman": "PMAK-{H24}-{H34}",
    "PyPI": "pypi-AgEIcHlwaS5vcmc{W150}",
    "RubyGems": "rubygems_{H48}",
    "age": "AGE-SECRET-KEY-1{U58}",
    "Doppler": "dp.pt.{A43}",
    "Dynatrace": "dt0c01.{U24}.{U64}",
    "Grafana": "glsa_{A32}_{H8}",
    "Vault": "hvs.CAES{W90}",
    "New Relic": "NRAK-{U27}",
    "Pulumi": "pul-{H40}",
    "Sentry": "sntryu_{H64}",
    "Tailscale": "tskey-auth-{A17}-{A32}",
    "Terraform": "{A14}.atlasv1.{W67}",
    "Anthropic": "sk-ant-api03-{W93}AA",
    "Groq": "gsk_{A52}",
    "Hugging Face": "hf_{A34}",
    "OpenAI": "sk-{A20}T3BlbkFJ{A20}",
    "OpenAI project": "sk-proj-{W74}T3BlbkFJ{W74}",
    "OpenRouter": "sk-or-v1-{H64}",
    "Replicate": "r8_{A37}",
    "Brevo": "xkeysib-{H64}-{A16}",
    "Discord bot": "MT{A24}.{W6}.{W38}",
    "Discord webhook": "https://discord.com/api/webhooks/{D18}/{W68}",
    "Mailchimp": "{H32}-us14",
    "Mailgun": "key-{H32}",
    "SendGrid": "SG.{W22}.{W43}",
    "Slack bot": "xoxb-{D12}-{D13}-{A24}",
    "Slack user": "xoxp-{D12}-{D12}-{D13}-{H32}",
    "Slack webhook": "https://hooks.slack.com/services/T{U10}/B{U10}/{A24}",
    "Telegram": "{D10}:AA{W33}",
    "Twilio": "SK{H32}",
    "EasyPost": "EZAK{A54}",
    "PayPal": "access_token$production${L16}${H32}",
    "Shopify": "shpat_{H32}",
    "Square": "sq0csp-{W43}",
    "Stripe": "sk_live_{A24}",
    "Stripe restricted": "rk_live_{A99}",
    "Airtable": "pat{A14}.{H64}",
    "Figma": "figd_{W40}",
    "Linear": "lin_api_{A40}",
    "Notion": "ntn_{A46}",
    "URL": "postgres://app:{A16}@db.internal:5432/prod",
    "URL with a mark": "amqp://svc:{A8}!{A5}@mq.internal/",
}

# Values without a format of their own are recognized by their context.
PLACES = {
    "Python password": 'DB_PASSWORD = "{A9}!{D3}"\n',
    "Python API key": "api_key = '{H32}'\n",
    "Python keyword": 'connect(user="svc", password="{A12}7")\n',
    "dictionary": '{{"client_secret": "{A40}"}}\n',
    "AWS secret key": 'aws_secret_access_key = "{B40}"\n',
    "JavaScript": "const authToken = `{A32}`;\n",
    "Go": 'apiKey := "{H40}"\n',
    "Ruby": ':secret_key_base => "{H64}"\n',
    "typed": 'private token: str = "{A30}"\n',
    "XML": "<password>{A10}9x</password>\n",
    "header": 'headers["Authorization"] = "Bearer {A40}"\n',
    "basic header": 'curl -H "Authorization: Basic {A31}=" https://h\n',
    "connection string": 'conn = "Server=db;User Id=sa;Password={A11}1;"\n',
}
BARE_PLACES = {
    "YAML": "password: {A12}3\n",
    "INI": "secret_key={A32}\n",
    "Shell": "export SERVICE_TOKEN={H40}\n",
}


def fill(template: str, rng: random.Random) -> tuple[str, list[str]]:
    """Fills a template's fields with random characters; returns the text and those characters."""
    values: list[str] = []

    def draw(match: re.Match[str]) -> str:
        values.append("".join(rng.choice(ALPHABETS[match[1]]) for _ in range(int(match[2]))))
        return values[-1]

    text = re.sub(r"\{([A-Z2])(\d+)\}", draw, template)
    return text.replace("{{", "{").replace("}}", "}"), values


def private_key(kind: str, rng: random.Random) -> tuple[str, str]:
    """Makes a block that looks like a private key; returns it and its first line of content."""
    body = base64.encodebytes(rng.randbytes(600)).decode()
    return f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n", body.splitlines()[0]
