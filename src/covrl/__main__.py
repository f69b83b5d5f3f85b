from covrl.cli.app import main

main()
